"""The database: tables, migrations, a repository per noun. Every query is scoped to an account.

`database.Database` opens it, `rows` are what comes out, a `transaction.Tx` carries the repositories.
"""
