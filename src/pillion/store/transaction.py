"""A transaction: the repositories over one connection."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from pillion.store.account_changes import AccountChanges
from pillion.store.accounts import Accounts
from pillion.store.adapters import Adapters
from pillion.store.attachments import Attachments
from pillion.store.audit import Audit
from pillion.store.bills import Bills
from pillion.store.events import Events
from pillion.store.everyone import Everyone
from pillion.store.gateways import JoinedGateways
from pillion.store.instances import Instances
from pillion.store.invites import Invites
from pillion.store.jobs import Jobs
from pillion.store.keys import Keys
from pillion.store.leases import Leases
from pillion.store.ledger import Books, Ledger
from pillion.store.logins import Logins
from pillion.store.members import Members
from pillion.store.models import Models
from pillion.store.owing import Owing
from pillion.store.prices import Prices
from pillion.store.retention import Retention
from pillion.store.runs import Runs
from pillion.store.secrets import Secrets
from pillion.store.session import Session
from pillion.store.settings import Settings
from pillion.store.slices import Slices
from pillion.store.usage import Intake, Usage
from pillion.store.versions import Versions


class Tx:
    """Methods take the account first and see only what is its; `everyone` alone crosses accounts."""

    def __init__(self, connection: AsyncConnection) -> None:
        session = Session(connection)
        self.everyone = Everyone(Session(connection, everyone=True))
        self.changes = AccountChanges(Session(connection, everyone=True))
        self.accounts = Accounts(session)
        self.keys = Keys(session)
        self.members = Members(session)
        self.invites = Invites(session)
        self.logins = Logins(session)
        self.models = Models(session)
        self.adapters = Adapters(session)
        self.versions = Versions(session)
        self.instances = Instances(session)
        self.attachments = Attachments(session, self.everyone)
        self.jobs = Jobs(session)
        self.events = Events(session)
        self.audit = Audit(session)
        self.retention = Retention(Session(connection, everyone=True))
        self.secrets = Secrets(session)
        self.settings = Settings(session)
        self.leases = Leases(session)
        self.gateways = JoinedGateways(session)
        self.usage = Usage(session)
        self.intake = Intake(Session(connection, everyone=True))
        self.prices = Prices(session)
        self.ledger = Ledger(session)
        self.bills = Bills(session)
        self.slices = Slices(session)
        self.runs = Runs(Session(connection, everyone=True))
        self.owing = Owing(Session(connection, everyone=True))
        self.books = Books(Session(connection, everyone=True))
