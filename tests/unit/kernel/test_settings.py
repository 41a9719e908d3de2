"""Settings merge from three sources into typed structs, and misspelt ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from sampan.kernel.errors import SettingsError
from sampan.kernel.part import PartSettings
from sampan.kernel.settings import decode, document, load


class Storage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    segment_size: Annotated[int, Meta(description="bytes in one segment", ge=1)] = 1024
    driver: Literal["memory", "disk"] = "disk"


class Messaging(PartSettings, kw_only=True):
    grpc_port: Annotated[int, Meta(description="port of the gRPC front", ge=0, le=65535)] = 8081
    topics: Annotated[list[str], Meta(description="topics made at start")] = msgspec.field(default_factory=list)
    compress: Annotated[bool | None, Meta(description="compress bodies")] = None
    storage: Storage = msgspec.field(default_factory=Storage)


TYPES = {"messaging": Messaging, "kube-proxy": PartSettings}


def test_flags_override_environment_which_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sampan.yaml"
    file.write_text("messaging: {grpc_port: 1, topics: [a], storage: {segment_size: 5}}\n")
    raw = load(
        TYPES,
        file=file,
        environment={"SAMPAN_MESSAGING_GRPC_PORT": "2", "SAMPAN_MESSAGING_STORAGE_DRIVER": "memory", "HOME": "/"},
        flags=["messaging.grpc_port=3", "messaging.compress=true"],
    )
    settings = decode("messaging", raw["messaging"], Messaging)
    assert settings == Messaging(
        grpc_port=3, topics=["a"], compress=True, storage=Storage(segment_size=5, driver="memory")
    )


@pytest.mark.parametrize("text", ["a,b", '["a", "b"]', "a, b,"])
def test_a_list_is_written_with_commas_or_as_json(text: str) -> None:
    raw = load(TYPES, flags=[f"messaging.topics={text}"])
    assert decode("messaging", raw["messaging"], Messaging).topics == ["a", "b"]


@pytest.mark.parametrize(
    ("flags", "environment", "yaml", "message"),
    [
        (["mesaging.grpc_port=1"], {}, "", "--set: there is no part named mesaging; did you mean messaging"),
        (["messaging.grcp_port=1"], {}, "", r"there is no setting messaging.grcp_port; did you mean grpc_port"),
        (["messaging"], {}, "", "write it as part.field=value"),
        ([], {"SAMPAN_MESSAGING_GRPCPORT": "1"}, "", "did you mean SAMPAN_MESSAGING_GRPC_PORT"),
        ([], {}, "messaging: {storage: {segmentsize: 1}}", "messaging.storage.segmentsize; did you mean segment_size"),
        ([], {}, "messaging: [", "cannot be read"),
        ([], {}, "messaging: 5", "messaging must map settings to values"),
    ],
)
def test_mistakes_are_one_clear_sentence(
    tmp_path: Path, flags: list[str], environment: dict[str, str], yaml: str, message: str
) -> None:
    file = tmp_path / "sampan.yaml"
    file.write_text(yaml)
    with pytest.raises(SettingsError, match=message):
        load(TYPES, file=file, environment=environment, flags=flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("messaging.grpc_port=many", r"setting messaging.grpc_port: Expected `int"),
        ("messaging.grpc_port=70000", r"setting messaging.grpc_port: Expected `int` <= 65535"),
        ("messaging.storage.driver=tape", r"setting messaging.storage.driver: Invalid enum value"),
    ],
)
def test_a_wrong_value_names_its_setting(flag: str, message: str) -> None:
    raw = load(TYPES, flags=[flag])
    with pytest.raises(SettingsError, match=message):
        decode("messaging", raw["messaging"], Messaging)


def test_the_fields_document_themselves() -> None:
    text = document(TYPES)
    assert "| `messaging.grpc_port` | int | `8081` | port of the gRPC front |" in text
    assert "| `messaging.topics` | list of str |  | topics made at start |" in text
    assert '| `messaging.storage.driver` | `memory` or `disk` | `"disk"` |  |' in text
    assert "kube-proxy" not in text
