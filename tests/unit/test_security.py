"""What a file says is data: nothing that is read runs code, loads from elsewhere or writes where it should not."""

from __future__ import annotations

import ast
import hashlib
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.templating import render_text
from lgd.detectors.weight_files import read_weights
from lgd.detectors.weight_sources import local_path
from lgd.errors import InputError

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    x for top in ("lgd", "analysis", "benchmarks", "ablations", "tools") for x in (ROOT / top).rglob("*.py")
)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a file, with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_files_are_read_without_running_code() -> None:
    """Every torch.load says weights_only; nothing unpickles, evaluates, or loads YAML with Python's tags."""
    found = []
    for path in SOURCES:
        for name, node in calls(path):
            keywords = {x.arg: ast.unparse(x.value) for x in node.keywords}
            unsafe = name in (
                "eval", "exec", "pickle.load", "pickle.loads", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load",
                "os.system", "shutil.unpack_archive",
            )  # fmt: skip
            unsafe |= name == "torch.load" and keywords.get("weights_only") != "True"
            unsafe |= name == "yaml.load" and "Safe" not in keywords.get("Loader", "")
            unsafe |= name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False"
            # Of a template that comes from a file; analysis/templating.py renders it in a sandbox.
            unsafe |= name.endswith((".from_string", "jinja2.Template")) and path != ROOT / "analysis/templating.py"
            # The members of an archive may be called ../../x.
            unsafe |= name.endswith((".extractall", ".extract"))
            unsafe |= keywords.get("shell") == "True"
            # detectron2's configs with Python's tags, which its merge_from_file reads unless it is told not to.
            # lgd/detectors/config_files.py reads the model zoo's own so, and no others.
            tags = keywords.get("allow_unsafe", str(name.endswith(".merge_from_file")))
            unsafe |= tags != "False" and (path, tags) != (ROOT / "lgd/detectors/config_files.py", "found is not None")
            if unsafe:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert found == []


def _reduces_to(function: Any, *arguments: Any) -> Any:
    class Hostile:
        def __reduce__(self) -> Any:
            return function, arguments

    return Hostile()


def _by_name(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls ``module.name(argument)``, by hand: with dotted names, and modules that are not there."""
    texts = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name))
    return b"\x80\x04" + texts + b"\x93" + b"\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R."


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize(
    "content",
    [
        lambda x: pickle.dumps({"model": _reduces_to(Path.touch, x)}),
        lambda x: pickle.dumps({"model": _reduces_to(eval, f"__import__('pathlib').Path({str(x)!r}).touch()")}),
        lambda x: pickle.dumps({"model": {"conv1_w": _reduces_to(getattr, x, "touch")}}),
        lambda x: _by_name("os", "system", f"touch {x}"),
        lambda x: _by_name("numpy", "ndarray.__class__", str(x)),
        lambda x: _by_name("numpy", "fromfile", str(x)),
        lambda x: _by_name("collections", "OrderedDict.__init__.__globals__", str(x)),
        lambda x: _by_name("torch.serialization", "load", str(x)),
        lambda x: _by_name("this_is_not_installed", "f", str(x)),
    ],
)
def test_a_hostile_pickle_is_refused(suffix: str, content: Any, tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / f"weights{suffix}"
    path.write_bytes(content(touched))
    with pytest.raises(InputError, match="is damaged or no checkpoint of weights") as caught:
        read_weights(path, str(path))
    assert "\n" not in str(caught.value)
    assert not touched.exists()


class _Server(BaseHTTPRequestHandler):
    """Any path is the file of the same seven bytes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"weights")

    def log_message(self, *_: Any) -> None:
        pass


def test_what_is_downloaded_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "0" * 64
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.pth"
        with pytest.raises(InputError, match="cannot be downloaded .invalid hash value"):
            local_path(f"{url}#sha256={wrong}")
        assert not list((tmp_path / "cache").rglob("*.pth"))
        path = local_path(f"{url}#sha256={right}")
        server.shutdown()
    assert path.read_bytes() == b"weights"
    # What lies on the disk already is checked, too.
    assert local_path(f"{path}#sha256={right.upper()}") == path
    with pytest.raises(InputError, match=f"is another file, its SHA-256 is {right}"):
        local_path(f"{url}#sha256={wrong}")


@pytest.mark.parametrize(
    "expression",
    [
        "lipsum.__globals__['os'].system('touch {}')",
        "cycler.__init__.__globals__.os.system('touch {}')",
        "(gain | attr('__globals__'))['Path']('{}').touch()",
        "gain.__globals__.Path('{}').touch()",
        "gain.__code__.co_filename",
        "''.__class__.__mro__[1].__subclasses__()",
        "'%s' | format(self.__init__.__globals__)",
        "'{{0.__globals__}}'.format(gain)",
        "rows.append(1)",
    ],
)
def test_a_text_with_expressions_reaches_nothing_but_its_names(expression: str, tmp_path: Path) -> None:
    """As notes.md beside a study's directory, which somebody else may have written."""
    touched, rows = tmp_path / "touched", [0]

    def gain() -> str:
        return "+1.0"

    with pytest.raises(InputError, match="notes.md: ") as caught:
        render_text(f"{{{{ {expression.format(touched)} }}}}", "notes.md", gain=gain, rows=rows)
    assert "\n" not in str(caught.value)
    assert not touched.exists()
    assert rows == [0]
    assert render_text("It is {{ gain() }} by {{ rows[0] | number }}.", "notes.md", gain=gain, rows=rows)


@pytest.mark.parametrize("expression", ["1 / 0", "gain(1)", "'a' | float / 'b'", "range(10 ** 9)", "{% include 'x' %}"])
def test_a_text_that_cannot_be_rendered_is_named(expression: str) -> None:
    text = expression if expression.startswith("{%") else f"{{{{ {expression} }}}}"
    with pytest.raises(InputError, match="^notes.md: ."):
        render_text(text, "notes.md", gain=lambda: "")


def test_a_checkpoint_of_plain_values_is_read(tmp_path: Path) -> None:
    """What the refusals above are worth: the same files without anything hostile are read."""
    tensors = {"stem.conv1.weight": torch.ones(8, 3, 7, 7)}
    torch.save({"model": tensors}, tmp_path / "x.pth")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {k: x.numpy() for k, x in tensors.items()}}))
    for name in ("x.pth", "x.pkl"):
        assert torch.equal(read_weights(tmp_path / name, name).tensors["stem.conv1.weight"], torch.ones(8, 3, 7, 7))
