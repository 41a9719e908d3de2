"""What the commands do on files alone: no platform runs."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

import sampan.cli
from sampan.cli.options import Duration
from sampan.cli.status import describe
from sampan.cli.up import platform_lines

OURS = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "sampan", "cluster": {"server": "https://127.0.0.1:6443"}}],
    "users": [{"name": "sampan", "user": {"token": "new"}}],
    "contexts": [{"name": "sampan", "context": {"cluster": "sampan", "user": "sampan"}}],
    "current-context": "sampan",
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(sampan.cli.sampan, list(arguments))


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        (["clock", "jump", "--data-dir", "d", "3d"], ["--data-dir", "d", "clock", "jump", "3d"]),
        (["clock", "run", "--rate", "2", "--data-dir=d"], ["--data-dir=d", "clock", "run", "--rate", "2"]),
        (["--data-dir", "a", "up", "--data-dir", "b"], ["--data-dir", "a", "--data-dir", "b", "up"]),
        (["image", "run", "--", "x", "--data-dir", "d"], ["image", "run", "--", "x", "--data-dir", "d"]),
        (["up", "--data-dir"], ["up", "--data-dir"]),
    ],
)
def test_the_data_directory_may_be_named_anywhere_in_the_line(given: list[str], understood: list[str]) -> None:
    assert sampan.cli.hoisted(given) == understood


def test_only_a_platform_with_a_kubernetes_api_says_how_kubectl_reaches_it(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("of an earlier run with other parts")
    assert "KUBECONFIG" not in "".join(platform_lines(tmp_path, {"messaging.grpc": ("127.0.0.1", 8081)}))
    assert "KUBECONFIG" in "".join(platform_lines(tmp_path, {"kubernetes": ("127.0.0.1", 6443)}))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3d", 259200), ("1h30m", 5400), ("-2h", -7200), ("90", 90), ("250ms", 0.25), ("1w", 604800), ("+5s", 5)],
)
def test_a_duration_is_written_as_people_do(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "3x", "h3", "1h junk", "--5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        Duration().convert(text, None, None)


def test_merging_a_kubeconfig_keeps_what_was_there_and_replaces_our_own(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(OURS))
    theirs = tmp_path / "home" / "config"
    theirs.parent.mkdir()
    theirs.write_text(
        yaml.safe_dump(
            {
                **OURS,
                "clusters": [{"name": "work", "cluster": {}}, {"name": "sampan", "cluster": {"server": "old"}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "work", "context": {}}],
                "current-context": "work",
                "preferences": {"colors": True},
            }
        )
    )
    result = run("kubeconfig", "--data-dir", str(tmp_path), "--merge", str(theirs))
    assert result.exit_code == 0, result.output
    merged = yaml.safe_load(theirs.read_text())
    assert [entry["name"] for entry in merged["clusters"]] == ["work", "sampan"]
    assert merged["clusters"][1]["cluster"]["server"] == "https://127.0.0.1:6443"
    assert [entry["name"] for entry in merged["users"]] == ["me", "sampan"]
    assert (merged["current-context"], merged["preferences"]) == ("sampan", {"colors": True})
    assert theirs.stat().st_mode & 0o777 == 0o600


def test_merging_goes_past_the_platforms_own_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(OURS))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", str(own))  # as `sampan up` says to
    assert run("kubeconfig", "--data-dir", str(tmp_path), "--merge").exit_code == 0
    assert yaml.safe_load((tmp_path / "home/.kube/config").read_text())["current-context"] == "sampan"
    monkeypatch.setenv("KUBECONFIG", f"{own}:{tmp_path / 'mine'}")
    assert f"{tmp_path / 'mine'} now has" in run("kubeconfig", "--data-dir", str(tmp_path), "--merge").output


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = run("statsu")
    assert result.exit_code == 2
    assert "there is no command statsu; did you mean status?" in result.output


def test_logs_of_all_processes_come_in_order_of_time_without_half_lines(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()

    def line(second: int, logger: str, message: str) -> str:
        time = f"2026-01-01T00:00:{second:02}.000+00:00"
        return json.dumps({"time": time, "level": "info", "logger": logger, "message": message}) + "\n"

    (logs / "core.jsonl.1").write_text(line(1, "sampan.kubernetes", "first"))
    (logs / "core.jsonl").write_text(line(3, "sampan.kubernetes", "third") + '{"time": "2026')
    (logs / "messaging.jsonl").write_text(line(2, "sampan.broker", "second"))
    shown = run("logs", "--data-dir", str(tmp_path)).output.splitlines()
    assert [text.rsplit(" ", 1)[1] for text in shown] == ["first", "second", "third"]
    assert "second" in run("logs", "messaging", "--data-dir", str(tmp_path)).output
    assert run("logs", "-n", "1", "--data-dir", str(tmp_path)).output.count("\n") == 1


def test_status_shows_a_failed_part_with_its_reason() -> None:
    part = {
        "name": "messaging",
        "state": "failed",
        "process": 0,
        "restarts": 3,
        "error": "no room",
        "needs": [],
        "facts": {},
    }
    clock = {"time": "2026-01-01T00:00:00.000+00:00", "ahead_seconds": 3600.0, "rate": 0}
    lines = describe(
        {
            "state": "degraded",
            "pid": 7,
            "data_dir": "/data",
            "clock": clock,
            "parts": [part],
            "addresses": {"kubernetes": "127.0.0.1:6443"},
        }
    )
    text = click.unstyle("\n".join(lines))
    assert "degraded  process 7" in text
    assert "+3600 s from the machine's  frozen" in text
    assert "  messaging  failed" in text and text.count("3 restarts  no room") == 1
    assert ":6443" in text


def test_status_shows_ports_pods_and_urls_at_a_glance_in_the_width_there_is() -> None:
    def part(name: str, **facts: object) -> dict[str, object]:
        return {"name": name, "state": "ready", "process": 7, "restarts": 0, "error": "", "needs": [], "facts": facts}

    rows = [[f"default/web-{number:02}", "Running", "1/1", "", f"127.9.0.{number}"] for number in range(20)]
    status = {
        "state": "ready",
        "pid": 7,
        "data_dir": "/data",
        "parts": [
            part("traffic", urls={"default/web": "http://127.0.0.1:9080"}, envoy=4711, told="x" * 80),
            part("node", tier="T1", rows={"pods": rows}),
        ],
        "addresses": {"gateway": "127.0.0.1:9080", "gateway.tls": "127.0.0.1:9443", "kubelet": "0.0.0.0:10250"},
    }
    lines = [click.unstyle(line) for line in describe(status, 80)]
    text = "\n".join(lines)
    assert "gateway :9080, tls :9443" in text and "kubelet 0.0.0.0:10250" in text and "tier=T1" in text
    assert "default/web-14  Running  1/1  127.9.0.14" in text and "web-15" not in text and "and 5 more" in text
    assert "default/web  http://127.0.0.1:9080" in text
    assert max(map(len, lines)) <= 80
    assert "web-19" in "\n".join(describe(status, 0, 100))


def test_the_data_directory_may_stand_before_or_after_the_command(tmp_path: Path) -> None:
    for arguments in (("--data-dir", str(tmp_path), "status"), ("status", "--data-dir", str(tmp_path))):
        assert f"no platform is running on {tmp_path};" in run(*arguments).output
    nearer = run("--data-dir", "/elsewhere", "status", "--data-dir", str(tmp_path))
    assert f"running on {tmp_path};" in nearer.output
    assert str(tmp_path) in str(run("--data-dir", str(tmp_path), "clock", "show").exception)


def test_an_hour_back_is_no_call_for_help() -> None:
    result = run("--data-dir", "/nonexistent", "clock", "jump", "-1h")
    assert "no platform answers" in str(result.exception) and "Usage" not in result.output


def test_logs_of_a_part_that_does_not_exist_are_asked_for_in_vain(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    result = run("--data-dir", str(tmp_path), "logs", "trafic")
    assert str(result.exception) == "there is no part named trafic; did you mean traffic?"
    assert run("--data-dir", str(tmp_path), "logs", "traffic").exit_code == 0
