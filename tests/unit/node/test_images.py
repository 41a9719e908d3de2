import gzip
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.node.agent.launching import _with_interpreter
from sampan.parts.node.errors import BuildError, ImageError, ImageNameError, ImageNeverPullError
from sampan.parts.node.images import environment, transfer
from sampan.parts.node.images.build import build, entry, pack, requirements
from sampan.parts.node.images.environment import environment_key, requirement_lines
from sampan.parts.node.images.image import PYTHON, ImageConfig
from sampan.parts.node.images.provider import Images
from sampan.parts.node.images.reference import Reference, default_pull_policy
from sampan.parts.node.images.standins.webserver import parse
from sampan.parts.node.images.store import ImageStore

CREATED = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
        ("localhost/a", "localhost/a:latest"),
        ("gcr.io/knative-samples/helloworld-go", "gcr.io/knative-samples/helloworld-go:latest"),
        ("a@sha256:" + "0" * 64, "docker.io/library/a@sha256:" + "0" * 64),
    ],
)
def test_a_reference_is_read_as_container_tools_read_it(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize(
    "text", ["", "Nginx", "a b", "nginx:", "nginx:bad tag", "a@sha256:12", "-x", "a//b", "http://a/b"]
)
def test_what_is_no_reference_is_an_invalid_image_name(text: str) -> None:
    with pytest.raises(ImageNameError, match="couldn't parse image name"):
        Reference.parse(text)


def test_the_default_pull_policy_is_always_for_latest_only() -> None:
    assert [default_pull_policy(image) for image in ("a", "a:latest", "a:1", "a@sha256:" + "0" * 64)] == [
        "Always",
        "Always",
        "IfNotPresent",
        "IfNotPresent",
    ]


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "command", "expected"),
    [
        ({"Procfile": "web: python server.py --port 1\n"}, "", ["python", "server.py", "--port", "1"]),
        ({"Procfile": "web: gunicorn -b :$PORT app:app\n"}, "", ["/bin/sh", "-c", "exec gunicorn -b :$PORT app:app"]),
        ({"Procfile": "worker: python w.py"}, "", ["python", "w.py"]),
        ({"app.py": "", "main.py": ""}, "", ["python", "app.py"]),
        ({"run.sh": ""}, "", ["/bin/sh", "run.sh"]),
        ({"app.py": ""}, "uvicorn app:app --host 0.0.0.0", ["uvicorn", "app:app", "--host", "0.0.0.0"]),
    ],
)
def test_the_entry_is_found_where_the_documentation_says(
    tmp_path: Path, files: dict[str, str], command: str, expected: list[str]
) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    assert entry(tmp_path, {}, command) == expected


def test_project_scripts_name_the_entry(tmp_path: Path) -> None:
    found = entry(tmp_path, {"name": "shop", "scripts": {"shop": "shop.cli:main", "other": "x:y"}}, "")
    assert found == ["python", "-c", "from shop.cli import main; raise SystemExit(main())"]
    with pytest.raises(BuildError, match="give --command"):
        entry(tmp_path, {"name": "z", "scripts": {"a": "x:y", "b": "x:z"}}, "")


def test_a_directory_that_says_nothing_is_told_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="Procfile"):
        entry(tmp_path, {}, "")


def test_requirements_come_from_the_file_before_the_project(tmp_path: Path) -> None:
    assert requirements(tmp_path, {"dependencies": ["a>1"]}) == ["a>1"]
    write(tmp_path, "requirements.txt", "# c\nflask==3 # pinned\n\n")
    assert requirements(tmp_path, {"dependencies": ["a>1"]}) == ["flask==3"]
    write(tmp_path, "requirements.txt", "-r other.txt\n")
    with pytest.raises(BuildError, match="list the requirements themselves"):
        requirements(tmp_path, {})


@given(st.lists(st.text("abc=<>1.", min_size=1, max_size=8)))
def test_the_environment_key_does_not_depend_on_order(lines: list[str]) -> None:
    assert environment_key(lines) == environment_key(list(reversed(lines)))


def test_requirement_lines_drop_comments() -> None:
    assert requirement_lines("a\n#b\n c # d\n") == ["a", "c"]


def test_the_same_files_give_the_same_layer(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "print(1)")
    write(tmp_path, "__pycache__/x.pyc", "x")
    write(tmp_path, ".dockerignore", "secret.txt\n")
    write(tmp_path, "secret.txt", "s")
    first = pack(tmp_path)
    os.utime(tmp_path / "app.py", (1, 1))
    assert pack(tmp_path) == first
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first[0]))) as archive:
        assert archive.getnames() == ["app", "app/.dockerignore", "app/app.py"]


def test_a_built_image_is_found_exported_removed_and_imported(tmp_path: Path) -> None:
    write(tmp_path / "src", "run.sh", "echo hi")
    store = ImageStore(tmp_path / "images")
    digest = build(store, tmp_path / "src", "shop:1", created=CREATED)
    reference = Reference.parse("shop:1")
    assert store.find(reference) == digest
    image = store.prepare(digest, str(reference))
    assert image.host
    assert image.config.cmd == ["/bin/sh", "run.sh"]
    assert (Path(image.layers[0]) / "app/run.sh").read_text() == "echo hi"
    for target in (tmp_path / "out.tar", tmp_path / "out"):
        transfer.export(store, "shop:1", target)
        other = ImageStore(tmp_path / f"other-{target.name}")
        other.open()
        assert transfer.load(other, target) == ["docker.io/library/shop:1"]
        assert other.find(reference) == digest
    assert store.remove(reference)
    assert not store.remove(reference)
    assert list((tmp_path / "images/blobs/sha256").iterdir()) == []
    assert list((tmp_path / "images/layers").iterdir()) == []


def test_a_damaged_blob_is_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    digest = store.add("docker.io/library/a:1", ImageConfig(), [], [], CREATED)
    transfer.export(store, "a:1", tmp_path / "out")
    blob = tmp_path / "out/blobs/sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(ImageError, match="damaged"):
        transfer.load(ImageStore(tmp_path / "other"), tmp_path / "out")


def test_a_layer_cannot_write_outside_its_directory(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        information = tarfile.TarInfo("../../escaped")
        information.size = 1
        archive.addfile(information, io.BytesIO(b"x"))
    store = ImageStore(tmp_path / "images")
    digest = store.add("docker.io/library/a:1", ImageConfig(), [data.getvalue()], ["sha256:0"], CREATED)
    with pytest.raises(ImageError, match="cannot be extracted"):
        store.prepare(digest, "a:1")
    assert not (tmp_path / "escaped").exists()


def layer(*members: tarfile.TarInfo) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member)
    return data.getvalue()


@pytest.mark.parametrize("whiteout", ["{out}/made/.wh.x", "../../../out/made/.wh.x", "link/made/.wh.x", "a/.wh..."])
def test_a_whiteout_makes_and_hides_nothing_outside_its_layer(tmp_path: Path, whiteout: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, str(out)
    store = ImageStore(tmp_path / "images")
    data = layer(link, tarfile.TarInfo(whiteout.format(out=out)))
    digest = store.add("docker.io/library/a:1", ImageConfig(), [data], ["sha256:0"], CREATED)
    with pytest.raises(ImageError):
        store.prepare(digest, "a:1")
    assert list(out.iterdir()) == []


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = type, link, 0o4777
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("link", tarfile.SYMTYPE, "{out}"), member("link/made")],
        [member("link", tarfile.SYMTYPE, "{out}/made"), member("link")],
        [member("up", tarfile.SYMTYPE, "../../.."), member("up/out/made")],
        [member("hard", tarfile.LNKTYPE, "../../../out/secret")],
        [member("hard", tarfile.LNKTYPE, "{out}/secret")],
        [member("../../../out/made")],
    ],
)
def test_no_member_of_a_layer_leads_out_of_it(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "secret").write_text("secret")
    for one in members:
        one.linkname = one.linkname.format(out=out)
    store = ImageStore(tmp_path / "images")
    digest = store.add("docker.io/library/a:1", ImageConfig(), [layer(*members)], ["sha256:0"], CREATED)
    with pytest.raises(ImageError, match="cannot be extracted"):
        store.prepare(digest, "a:1")
    assert [path.name for path in out.iterdir()] == ["secret"]
    assert (out / "secret").stat().st_nlink == 1


def test_files_of_a_layer_keep_their_modes_but_for_what_would_give_rights(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    folder = member("tmp", tarfile.DIRTYPE)
    folder.mode = 0o1777
    data = layer(member("/program"), member("also", tarfile.LNKTYPE, "program"), folder)
    digest = store.add("docker.io/library/a:1", ImageConfig(), [data], ["sha256:0"], CREATED)
    (place,) = store.prepare(digest, "a:1").layers
    assert (Path(place) / "program").stat().st_mode & 0o7777 == 0o777
    assert (Path(place) / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert Path(place).parent.stat().st_mode & 0o777 == 0o700
    assert (Path(place) / "also").samefile(Path(place) / "program")


def test_python_is_there_where_the_system_has_only_python3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "usr/bin/python3.11"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    monkeypatch.setattr(environment, "base_interpreter", lambda: str(interpreter))
    store = ImageStore(tmp_path / "images")
    config = ImageConfig(cmd=["python", "a.py"], labels={PYTHON: "base"})
    image = store.prepare(
        store.add("docker.io/library/a:1", config, [layer(member("a"))], ["sha256:0"], CREATED), "a:1"
    )
    assert image.python == str(interpreter)
    lowest = Path(image.layers[-1])
    assert (lowest / "usr/local/bin/python").readlink() == interpreter
    assert (Path(image.layers[0]) / "a").exists()
    assert _with_interpreter(["python", "a.py"], image) == [str(interpreter), "a.py"]
    assert _with_interpreter(["sh", "python"], image) == ["sh", "python"]
    (interpreter.parent / "python").symlink_to(interpreter)
    assert _with_interpreter(["python", "a.py"], image) == ["python", "a.py"]
    assert len(store.prepare(image.digest, "a:1").layers) == 1


def test_a_layer_cut_off_in_the_middle_is_the_images_fault(tmp_path: Path) -> None:
    big = tarfile.TarInfo("big")
    big.size = 1 << 20
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        archive.addfile(big, io.BytesIO(bytes(range(256)) * 4096))
    store = ImageStore(tmp_path / "images")
    digest = store.add("docker.io/library/a:1", ImageConfig(), [data.getvalue()[:-400]], ["sha256:0"], CREATED)
    with pytest.raises(ImageError, match="cannot be extracted"):
        store.prepare(digest, "a:1")


@pytest.mark.parametrize(
    "index", [b"[]", b'{"manifests": 3}', b'{"manifests": [{}]}', b'{"manifests": [{"digest": 1, "annotations": []}]}']
)
def test_an_index_of_another_shape_is_refused(tmp_path: Path, index: bytes) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "index.json").write_bytes(index)
    with pytest.raises(ImageError):
        transfer.load(ImageStore(tmp_path / "images"), layout, "a:1")


async def test_a_name_is_looked_up_in_mappings_store_and_catalogue(tmp_path: Path) -> None:
    images = Images(tmp_path / "images")
    images.store.open()
    builtin = await images.get("nginx:1.27")
    assert builtin.builtin
    assert builtin.config.cmd == ["nginx", "-g", "daemon off;"]
    images.store.add("docker.io/library/nginx:1.27", ImageConfig(cmd=["mine"]), [], [], CREATED)
    assert (await images.get("nginx:1.27")).config.cmd == ["mine"]
    images.store.map("redis", "nginx:1.27")
    assert (await images.get("redis")).config.cmd == ["mine"]
    with pytest.raises(ImageError, match="sampan image build") as raised:
        await images.get("mysql:8")
    assert raised.value.reason == "ErrImagePull"
    with pytest.raises(ImageNeverPullError, match="pull policy of Never"):
        await images.get("mysql:8", "Never")
    images.store.map("a", "b")
    images.store.map("b", "a")
    with pytest.raises(ImageError, match="circle"):
        await images.get("a")


@pytest.mark.parametrize(
    "name",
    [
        "registry.k8s.io/pause:3.10",
        "registry.k8s.io/e2e-test-images/agnhost:2.53",
        "gcr.io/knative-samples/helloworld-go",
        "ghcr.io/knative/helloworld-go:latest",
        "ghcr.io/knative/autoscale-go:latest",
        "hashicorp/http-echo:1.0",
        "busybox:1.36",
        "python:3.12-slim",
        "httpd:2.4",
    ],
)
async def test_published_names_have_stand_ins(tmp_path: Path, name: str) -> None:
    image = await Images(tmp_path / "images").get(name)
    assert image.builtin
    command = [*image.config.entrypoint, *image.config.cmd]
    assert command
    if command[0].startswith("/") and not command[0].startswith("/bin/"):
        assert os.access(Path(image.layers[0]) / command[0].lstrip("/"), os.X_OK)


def test_the_stand_in_reads_a_simple_nginx_configuration() -> None:
    sites = parse(
        """
        # a comment; with { braces }
        server {
            listen 8080; listen [::]:8080;
            root /srv;
            location = /health { return 200 "ok\\n"; add_header Content-Type text/plain; }
            location / { try_files $uri /index.html; }
            proxy_read_timeout 5s;
        }
        """
    )
    assert len(sites) == 1
    site = sites[0]
    assert site.ports == [8080]
    assert site.root == "/srv"
    assert site.locations[0].exact
    assert site.locations[0].answer == (200, "ok\\n")
    assert site.locations[1].fallback == "/index.html"
    assert site.unknown == ["proxy_read_timeout"]


def test_the_index_is_an_oci_index(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.add("docker.io/library/a:1", ImageConfig(), [], [], CREATED)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
