"""Every command against the fake server: what it asks, what it prints, how it fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from fake_api import FakeApi, Run, attachment, instance, job

READY = [[attachment(1, "attaching", 1)], [attachment(1, "ready", 2)]]


def test_lists_follow_pages_and_print_tab_separated_lines_in_a_pipe(run: Run, api: FakeApi) -> None:
    result = run("adapters", "list", "--base", "tiny", "--search", "p")
    assert result.exit_code == 0, result.output
    assert [line.split("\t")[1:3] for line in result.stdout.splitlines()] == [
        ["pirate", "pirate:1"],
        ["poet", "poet:2"],
    ]
    assert result.stdout.splitlines()[0].split("\t")[6:] == ["1234567", "1", "2023-11-14T22:13:20Z"]
    assert [path for _, path, _ in api.requests] == [
        "/v1/adapters?base_model=tiny&q=p",
        "/v1/adapters?base_model=tiny&q=p&after=c1",
    ]


def test_a_limit_stops_the_paging(run: Run, api: FakeApi) -> None:
    assert len(run("adapters", "list", "--limit", 1).stdout.splitlines()) == 1
    assert [path for _, path, _ in api.requests] == ["/v1/adapters?limit=1"]


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_table_with_sizes_people_read(run: Run) -> None:
    head, first, _ = run("adapters", "list").stdout.splitlines()
    assert head.split() == [
        "ID",
        "NAME",
        "CALL",
        "IT",
        "BASE",
        "STATE",
        "RANK",
        "SIZE",
        "INSTANCES",
        "CREATED",
    ]
    assert "1.2 MB" in first


def test_json_is_the_servers_own_unknown_fields_included(run: Run) -> None:
    page = json.loads(run("adapters", "list", "--json").stdout)
    assert page["object"] == "list"
    assert page["has_more"] is False
    assert [a["from_the_future"] for a in page["data"]] == [{"x": 1}, {"x": 1}]
    assert json.loads(run("adapters", "get", "pirate", "--json").stdout)["row_id"] == 1


@pytest.mark.usefixtures("terminal")
def test_one_adapter_is_shown_with_what_to_call_it(run: Run, api: FakeApi) -> None:
    api.attaching = [[attachment(4, "attaching", 1)]]
    shown = run("adapters", "get", 1).stdout
    assert "pirate:1, tiny:pirate" in shown
    assert "4 (attaching 1/2)" in shown
    assert "region" not in shown


def test_upload_sends_file_and_config_and_shows_warnings(run: Run, api: FakeApi, tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 100_000)
    (folder / "adapter_config.json").write_text("{}")
    result = run("adapters", "upload", "pirate", folder, "--base", "tiny", "--region", "eu-1")
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(b"w" * 100_000).hexdigest()
    assert api.uploaded["file"][:3] == ("adapter_model.safetensors", 100_000, digest)
    assert api.uploaded["config"][3] == b"{}"
    assert {name: api.uploaded[name][3] for name in ("name", "base_model", "region")} == {
        "name": b"pirate",
        "base_model": b"tiny",
        "region": b"eu-1",
    }
    assert "warning: lora_alpha is unknown" in result.stderr


def test_a_refused_upload_tells_every_reason_and_the_request(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"x")
    result = run("adapters", "upload", "bad", file, "--base", "tiny")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: the adapter cannot be accepted (adapter_invalid)",
        "  - q_proj: A without B",
        "  - rank 128 is over 64",
        "  request id: req-7",
    ]


def test_a_file_that_is_not_there_is_said_before_anything_is_sent(
    run: Run, api: FakeApi, tmp_path: Path
) -> None:
    result = run("adapters", "upload", "pirate", tmp_path / "no.safetensors", "--base", "tiny")
    assert result.exit_code == 1
    assert "no.safetensors is not a file" in result.stderr
    assert api.requests == []


def test_import_follows_its_job(run: Run, api: FakeApi) -> None:
    result = run("adapters", "import", "pirate", "--base", "tiny", "--repo", "a/b", "--revision", "v1")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["importing a/b: downloading 50%", "importing a/b: done 100%"]
    assert api.requests[0][2] == {"name": "pirate", "base_model": "tiny", "repo": "a/b", "revision": "v1"}
    assert "name\tpirate" in result.stdout


def test_import_without_waiting_tells_how_to_follow(run: Run) -> None:
    result = run("adapters", "import", "pirate", "--base", "tiny", "--repo", "a/b", "--no-wait", "--json")
    assert json.loads(result.stdout)["job"]["id"] == "job_1"
    assert "pillion jobs follow job_1" in result.stderr


def test_an_import_that_fails_ends_with_the_jobs_reason(run: Run, api: FakeApi) -> None:
    api.job = [
        job("failed", 0.5, "failed", error={"code": "adapter_invalid", "message": "rank 128 is over 64"})
    ]
    result = run("adapters", "import", "pirate", "--base", "tiny", "--repo", "a/b")
    assert result.exit_code == 1
    assert "error: Job job_1 failed: rank 128 is over 64 (adapter_invalid)" in result.stderr


def test_rename_and_delete(run: Run, api: FakeApi) -> None:
    assert "label\tcaptain" in run("adapters", "rename", "pirate", "captain").stdout
    assert api.requests[-1] == ("PATCH", "/v1/adapters/pirate", {"label": "captain"})
    refused = run("adapters", "delete", "pirate")
    assert refused.exit_code == 1
    assert "(adapter_in_use)" in refused.stderr
    assert run("adapters", "delete", "pirate", "--force").stderr == "deleted pirate\n"
    assert json.loads(run("adapters", "delete", "pirate", "--force", "--json").stdout)["deleted"] is True


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        (["attach", "pirate", 1], ("POST", "/v1/instances/1/adapters", {"adapter": "pirate"})),
        (
            ["deploy", "pirate", "--instance", 1],
            ("POST", "/v1/adapters/pirate/deploy", {"attach": {"instance_id": 1}}),
        ),
        (
            ["load", "pirate", "--pin", "--ttl", 60, "--session", "s", "--backend", 1],
            (
                "POST",
                "/v1/adapters/pirate/load",
                {"backends": [1], "pin": True, "ttl_seconds": 60.0, "session_key": "s", "wait": False},
            ),
        ),
    ],
)
def test_serving_waits_until_every_replica_has_it(
    run: Run, api: FakeApi, command: list[object], request_: tuple[str, str, object]
) -> None:
    api.attaching = [*READY]
    result = run("adapters", *command, "--json")
    assert result.exit_code == 0, result.output
    assert api.requests[0] == request_
    assert result.stderr.splitlines() == [
        "loading pirate: attaching (1 of 2)",
        "loading pirate: ready (2 of 2)",
    ]
    assert json.loads(result.stdout)["state"] == "ready"


def test_without_waiting_the_first_answer_is_printed(run: Run, api: FakeApi) -> None:
    result = run("adapters", "attach", "pirate", 1, "--no-wait")
    assert "state\tattaching" in result.stdout
    assert len(api.requests) == 1


def test_move_waits_at_its_target(run: Run, api: FakeApi) -> None:
    api.attaching = [[attachment(1, "ready", 2), attachment(2, "ready", 2)]]
    result = run("adapters", "move", "pirate", 1, 2)
    assert result.exit_code == 0, result.output
    assert api.requests[0] == ("POST", "/v1/adapters/pirate/move", {"from": 1, "to": 2})
    assert "instance\t2" in result.stdout


def test_an_attachment_that_fails_ends_with_the_engines_reason(run: Run, api: FakeApi) -> None:
    why = {"code": "adapter_ineffective", "message": "it changes nothing"}
    api.attaching = [[attachment(1, "failed", 0, error=why)]]
    result = run("adapters", "attach", "pirate", 1)
    assert result.exit_code == 1
    assert "error: pirate on instance 1 failed: it changes nothing (adapter_ineffective)" in result.stderr


def test_a_deadline_says_how_far_it_was(run: Run, api: FakeApi) -> None:
    api.attaching = [[attachment(1, "attaching", 1)]]
    result = run("adapters", "attach", "pirate", 1, "--timeout", 0)
    assert result.exit_code == 1
    assert "not done after 0 s (attaching); it goes on. (timed_out)" in result.stderr


def test_a_full_instance_refuses(run: Run) -> None:
    result = run("adapters", "attach", "pirate", 9)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: model instance at capacity (instance_at_capacity)"


def test_deploy_launches_with_lora_and_shows_both_stages(run: Run, api: FakeApi) -> None:
    api.starting = [instance(3, "starting"), instance(3, "running", 2)]
    api.attaching = [[attachment(3, "ready", 2)]]
    result = run(
        "adapters",
        "deploy",
        "pirate",
        "--launch",
        "tiny",
        "--max-rank",
        8,
        "--region",
        "eu-1",
        "--gpu-type",
        "L4",
    )
    assert result.exit_code == 0, result.output
    launch = {
        "model": "tiny",
        "lora": {"enabled": True, "max_rank": 8},
        "regions": ["eu-1"],
        "gpu_type": "L4",
    }
    assert api.requests[0][2] == {"launch": launch}
    assert result.stderr.splitlines() == [
        "instance 3 is launching",
        "instance 3: loading (0 of 2): reading weights",
        "instance 3: running (2 of 2)",
        "loading pirate: ready (2 of 2)",
    ]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--instance", 1, "--launch", "tiny"],
        ["--instance", 1, "--max-rank", 8],
        ["--instance", 1, "--region", "x"],
    ],
)
def test_deploy_wants_exactly_one_target(run: Run, api: FakeApi, options: list[object]) -> None:
    assert run("adapters", "deploy", "pirate", *options).exit_code == 2
    assert api.requests == []


def test_detach_waits_until_it_is_gone(run: Run, api: FakeApi) -> None:
    api.attaching = [[attachment(1, "detaching", 1)], []]
    result = run("adapters", "detach", "pirate", 1, "--force")
    assert result.exit_code == 0, result.output
    assert api.requests[0][1] == "/v1/instances/1/adapters/pirate?force=true"
    assert result.stderr.splitlines()[-1] == "detached pirate from instance 1"
    assert (
        json.loads(run("adapters", "detach", "pirate", 1, "--no-wait", "--json").stdout)["state"]
        == "detaching"
    )


def test_unload_and_warmup_show_attachments(run: Run, api: FakeApi) -> None:
    assert run("adapters", "unload", "pirate").stdout.split("\t")[2] == "detaching"
    assert api.requests[-1][2] == {}
    assert run("adapters", "warmup", "pirate", "poet").exit_code == 0
    assert api.requests[-1][2] == {"adapters": ["pirate", "poet"]}


def test_status_has_a_line_for_each_slot_in_use_and_each_empty_instance(run: Run) -> None:
    rows = [line.split("\t") for line in run("adapters", "status").stdout.splitlines()]
    assert rows[0][:7] == ["1", "tiny", "1/17", "pirate", "loaded", "yes", "2023-11-14T22:13:20Z"]
    assert rows[1][:4] == ["2", "tiny", "0/17", ""]
    assert json.loads(run("adapters", "status", "--json").stdout)["data"][0]["slots"] == 17


def test_eligible_says_why_not(run: Run) -> None:
    rows = [line.split("\t") for line in run("adapters", "eligible", "pirate").stdout.splitlines()]
    assert rows == [["1", "tiny", "yes", "15/16", ""], ["2", "tiny", "no", "0/16", "full, other base"]]


def test_versions_and_events(run: Run) -> None:
    assert run("adapters", "versions", "pirate").stdout.split("\t")[:2] == ["1", "yes"]
    assert run("adapters", "events", "pirate").stdout.rstrip("\n").split("\t")[1:] == [
        "attached",
        "adapter:adp_1",
        "by=key_1",
    ]


def test_download_stays_in_the_folder_it_was_given(run: Run, tmp_path: Path) -> None:
    inner = tmp_path / "in"
    inner.mkdir()
    result = run("adapters", "download", "pirate", "--output", inner)
    assert result.stdout.strip() == str(inner / "evil.safetensors")
    assert (inner / "evil.safetensors").read_bytes() == b"weights"
    assert [*tmp_path.iterdir()] == [inner]
    target = tmp_path / "w.safetensors"
    assert json.loads(run("adapters", "download", "pirate", "-o", target, "--json").stdout)["size_bytes"] == 7


def test_instances_list_and_get(run: Run, api: FakeApi) -> None:
    rows = [line.split("\t") for line in run("instances", "list", "--all").stdout.splitlines()]
    assert rows[0][:7] == ["1", "tiny", "running", "2/2", "0/16", "sim", "1xcpu"]
    assert api.requests[0][1] == "/v1/instances?all=true"
    shown = run("instances", "get", 1).stdout
    assert "call_it\ttiny:1" in shown
    assert "lora\t16 slots, rank up to 64" in shown


def test_launch_sends_what_was_given_and_shows_the_stages(run: Run, api: FakeApi) -> None:
    api.starting = [instance(3, "starting"), instance(3, "starting", 1), instance(3, "running", 2)]
    result = run(
        *(
            "instances",
            "launch",
            "tiny",
            "--max-adapters",
            4,
            "--on-demand",
            "--replicas",
            2,
            "--engine",
            "sim",
        ),
        *("--option", "max_model_len=512", "--option", "dtype=float32", "--gpu-count", 1),
    )
    assert result.exit_code == 0, result.output
    assert api.requests[0][2] == {
        "model": "tiny",
        "lora": {"enabled": True, "max_adapters": 4, "on_demand": True},
        "replicas": 2,
        "gpu_count": 1,
        "engine": "sim",
        "options": {"max_model_len": 512, "dtype": "float32"},
    }
    assert result.stderr.splitlines()[1:] == [
        "instance 3: loading (0 of 2): reading weights",
        "instance 3: loading (1 of 2): reading weights",
        "instance 3: running (2 of 2)",
    ]
    assert "state\trunning" in result.stdout


def test_launch_without_lora_sends_none(run: Run, api: FakeApi) -> None:
    assert run("instances", "launch", "tiny", "--no-wait", "--custom-api-path", "/generate").exit_code == 0
    assert api.requests[0][2] == {"model": "tiny", "custom_api_path": "/generate", "openai_compatible": False}
    assert run("instances", "launch", "tiny", "--option", "nonsense").exit_code == 2


def test_a_launch_that_fails_says_why(run: Run, api: FakeApi) -> None:
    failed = instance(3, "failed")
    failed["replicas"][0]["error"] = {"code": "engine_failed", "message": "out of memory"}
    api.starting = [failed]
    result = run("instances", "launch", "tiny")
    assert result.exit_code == 1
    assert "error: Instance 3 is failed: out of memory (engine_failed)" in result.stderr


def test_stop_waits_for_the_end(run: Run, api: FakeApi) -> None:
    api.starting = [instance(3, "stopping", 1), instance(3, "stopped")]
    assert "state\tstopped" in run("instances", "stop", 3).stdout
    assert "state\tstopping" in run("instances", "stop", 3, "--no-wait").stdout


def test_logs_and_events_of_an_instance(run: Run, api: FakeApi) -> None:
    assert run("instances", "logs", 1, "--tail", 5, "--replica", "r1").stdout == "starting\nready\n"
    assert api.requests[-1][1] == "/v1/instances/1/logs?tail=5&replica=r1"
    followed = run("instances", "logs", 1, "-f", "--json").stdout.splitlines()
    assert [json.loads(line)["line"] for line in followed] == ["starting", "ready", "more"]
    assert run("instances", "adapters", 1).stdout.startswith("pirate\t1\tready\t2/2")
    assert "attached" in run("instances", "events", 1).stdout
    assert json.loads(run("instances", "events", 1, "-f", "--json").stdout)["kind"] == "attached"


def test_models(run: Run, api: FakeApi) -> None:
    for command in (["models"], ["models", "list"]):
        assert [line.split("\t")[0] for line in run(*command).stdout.splitlines()] == ["tiny", "mine"]
    assert len(json.loads(run("models", "--json").stdout)["data"]) == 2
    assert run("models", "get", "mine", "--json").exit_code == 0
    assert run("models", "register", "mine", "--repo", "a/b", "--revision", "v1", "--no-lora").exit_code == 0
    assert api.requests[-1][2] == {"name": "mine", "source": "hf:a/b@v1", "lora": False}
    assert run("models", "register", "mine", "--path", "/m", "--region", "local").exit_code == 0
    assert api.requests[-1][2] == {"name": "mine", "source": "path:/m", "region": "local"}
    assert run("models", "register", "mine").exit_code == 2
    assert run("models", "delete", "mine").stderr == "deleted mine\n"


def test_regions_and_gpu_types(run: Run) -> None:
    assert run("regions").stdout == "local\t4 x cpu\n"
    assert run("gpu-types").stdout == "H100\t80\t2.49\n"


def test_jobs(run: Run, api: FakeApi) -> None:
    assert run("jobs", "list").stdout.split("\t")[:4] == ["job_1", "import", "running", "50%"]
    assert run("jobs", "get", "job_1").stdout.splitlines()[-2:] == ["one", "two"]
    followed = run("jobs", "follow", "job_1", "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in followed] == ["running", "succeeded"]
    assert "job job_1: downloading 50%" in run("jobs", "follow", "job_1").stderr
    assert "state\tcancelled" in run("jobs", "cancel", "job_1").stdout
    api.job = [job("failed", 0.5, "failed", error={"code": "adapter_invalid", "message": "no"})]
    assert run("jobs", "follow", "job_1").exit_code == 1
    api.job = [job("running", 0.5, "downloading")]
    assert "(stream_cut)" in run("jobs", "follow", "job_1").stderr


def test_a_new_key_stands_alone_on_stdout(run: Run, api: FakeApi) -> None:
    created = run("keys", "create", "ci", "--scope", "inference", "--scope", "manage")
    assert created.stdout == "pil_shown_once\n"
    assert api.requests[-1][2] == {"name": "ci", "scopes": ["inference", "manage"]}
    assert run("keys", "create", "ci", "--scope", "all").exit_code == 2
    assert json.loads(run("keys", "create", "ci", "--json").stdout)["key"] == "pil_shown_once"
    assert run("keys", "list").stdout.startswith("key_1\tci\tinference\t")
    revoked = run("keys", "revoke", "key_1")
    assert revoked.stderr.splitlines() == ["warning: not confirmed yet by gw-1", "revoked key_1"]


def test_accounts(run: Run, api: FakeApi) -> None:
    assert "name\tdefault" in run("account", "get").stdout
    assert run("account", "set-hf-token", input="hf_secret\n").exit_code == 0
    assert api.requests[-1] == ("PUT", "/v1/account/hf-token", {"token": "hf_secret"})
    assert run("account", "set-hf-token", input="\n").exit_code == 2
    assert run("account", "delete-hf-token").exit_code == 0
    assert run("accounts", "list").stdout.startswith("acc_1\tdefault\tshared\t")
    assert run("accounts", "create", "acme", "--tier", "reserved").exit_code == 0
    assert api.requests[-1][2] == {"name": "acme", "tier": "reserved"}
    assert run("accounts", "create-key", "acc_1", "first").stdout == "pil_shown_once\n"
    assert api.requests[-1] == ("POST", "/v1/admin/accounts/acc_1/keys", {"name": "first"})


def test_limits_of_a_new_key(run: Run, api: FakeApi) -> None:
    made = run("keys", "create", "ci", "--allow", "10.0.0.0/8", "--allow", "::1", "--spend-limit", "2.5")
    assert made.exit_code == 0
    assert api.requests[-1][2] == {"name": "ci", "allow": ["10.0.0.0/8", "::1"], "spend_limit": 2_500_000}
    assert run("keys", "create", "ci", "--spend-limit", "much").exit_code == 2


def test_the_operators_accounts(run: Run, api: FakeApi) -> None:
    assert "name\tdefault" in run("accounts", "get", "acc_1").stdout
    for words, change in (
        (("update", "--name", "acme", "--tier", "shared", "--local-only"), None),
        (("update", "--not-local-only"), {"local_only": False}),
        (("suspend",), {"suspended": True}),
        (("resume",), {"suspended": False}),
    ):
        done = run("accounts", words[0], "acc_1", *words[1:])
        assert done.stderr == "warning: not confirmed yet by gw-1\n"
        expected = change or {"name": "acme", "tier": "shared", "local_only": True}
        assert api.requests[-1] == ("PATCH", "/v1/admin/accounts/acc_1", expected)
    assert run("accounts", "delete", "acc_1").stderr == "deleted acc_1\n"
    assert run("accounts", "invite", "acc_1", "bob@x.org").stdout == "pii_shown_once\n"
    wanted = {"email": "bob@x.org", "role": "owner"}
    assert api.requests[-1] == ("POST", "/v1/admin/accounts/acc_1/invites", wanted)


def test_members_and_invites(run: Run, api: FakeApi) -> None:
    assert run("members", "list").stdout.startswith("mem_1\tann@x.org\tAnn\tmember\t")
    assert "role\towner" in run("members", "set-role", "mem_1", "owner").stdout
    assert api.requests[-1] == ("PATCH", "/v1/members/mem_1", {"role": "owner"})
    assert run("members", "set-role", "mem_1", "boss").exit_code == 2
    gone = run("members", "remove", "mem_1")
    assert gone.stderr.splitlines() == [
        "warning: their keys are not refused yet by gw-1",
        "removed ann@x.org",
    ]
    assert run("invites", "list").stdout.startswith("inv_1\tbob@x.org\tmember\t")
    assert run("invites", "create", "bob@x.org", "--role", "owner").stdout == "pii_shown_once\n"
    assert api.requests[-1] == ("POST", "/v1/invites", {"email": "bob@x.org", "role": "owner"})
    assert run("invites", "revoke", "inv_1").stderr == "withdrew inv_1\n"
    assert json.loads(run("invites", "revoke", "inv_1", "--json").stdout)["deleted"] is True


def test_gateways(run: Run, api: FakeApi) -> None:
    assert run("gateways", "list").stdout.startswith("gwy_1\teu-1\t")
    made = run("gateways", "add", "eu-1")
    assert made.stdout == "pgj_shown_once\n"
    assert "not shown again" in made.stderr
    assert api.requests[-1] == ("POST", "/v1/admin/gateways", {"name": "eu-1"})
    assert json.loads(run("gateways", "add", "--json").stdout)["token"] == "pgj_shown_once"
    assert run("gateways", "revoke", "gwy_1").stderr == "revoked gwy_1\n"
    assert api.requests[-1][:2] == ("DELETE", "/v1/admin/gateways/gwy_1")
    assert json.loads(run("gateways", "revoke", "gwy_1", "--json").stdout)["deleted"] is True


def test_single_requests(run: Run, api: FakeApi) -> None:
    shown = run("usage", "events", "--adapter", "adp_1", "--after", "6", "--limit", "5").stdout
    assert shown.split("\t")[2:4] == ["pirate:1", "adp_1"]
    assert api.requests[-1][1] == "/v1/usage/events?adapter_id=adp_1&after=6&limit=5"
    assert json.loads(run("usage", "events", "--json").stdout)["data"][0]["id"] == 7
    assert run("usage", "events", "--csv", "--key", "key_1").stdout == "id,model\n7,pirate:1\n"
    assert api.requests[-1][1] == "/v1/usage/events?key_id=key_1&format=csv"
    assert run("usage", "events", "--csv", "--limit", "5").exit_code == 2


def test_usage(run: Run, api: FakeApi) -> None:
    assert run("usage", "--window", "7d", "--group-by", "adapter").stdout == "pirate\t3\t42\n"
    assert api.requests[-1][1] == "/v1/usage/summary?window=7d&group_by=adapter"
    assert json.loads(run("usage", "--json").stdout)["data"][0]["tokens"] == 42


def test_chat_prints_the_answer_as_it_comes(run: Run, api: FakeApi) -> None:
    result = run("chat", "pirate:1", "hello", "--system", "be brief", "--max-tokens", 5, "--temperature", 0)
    assert result.stdout == "Ahoy, matey\n"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert api.requests[-1][2] == {
        "model": "pirate:1",
        "messages": messages,
        "stream": True,
        "max_tokens": 5,
        "temperature": 0.0,
    }
    assert run("chat", "tiny", "-", "--adapter", "pirate", input="from stdin").stdout == "Ahoy, matey\n"
    assert api.requests[-1][2]["messages"] == [{"role": "user", "content": "from stdin"}]
    assert (
        json.loads(run("chat", "tiny", "x", "--json").stdout)["choices"][0]["message"]["content"]
        == "Ahoy, matey"
    )


@pytest.mark.parametrize(("model", "code"), [("failing", "no_healthy_replica"), ("cut", "stream_cut")])
def test_a_stream_that_breaks_keeps_what_came_and_fails(run: Run, model: str, code: str) -> None:
    result = run("chat", model, "hello")
    assert result.exit_code == 1
    assert result.stdout == "Ahoy, matey\n"
    assert f"({code})" in result.stderr


def test_what_is_unknown_is_one_clear_line(run: Run) -> None:
    result = run("adapters", "get", "nobody")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("error: there is no adapter 'nobody'")
    assert "client_config" in run("adapters", "get", "..").stderr
    assert "model_not_found" in run("chat", "unknown", "x").stderr


def test_the_command_lines_key_and_url_win(run: Run, api: FakeApi) -> None:
    result = run("--api-key", "wrong", "adapters", "list")
    assert result.exit_code == 1
    assert "(invalid_api_key)" in result.stderr
    result = run("--url", "http://127.0.0.1:1", "adapters", "list")
    assert "Is `pillion serve` running there?" in result.stderr
    assert run("--url", "ftp://x", "adapters", "list").exit_code == 1
