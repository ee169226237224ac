"""What is said of a release is said alike everywhere. Whether it installs: `.ci/check-package`."""

from pathlib import Path

import yaml

import gmix

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gmix.__version__
    paper = citation["preferred-citation"]
    assert paper["title"] in (ROOT / "docs" / "index.md").read_text(encoding="utf-8").replace(
        "Pseudo\nMasks", "Pseudo Masks"
    )
    names = [author["family-names"] for author in paper["authors"]]
    assert ", ".join(names) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_this_version_and_the_least_python() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"**Version {gmix.__version__} · Python 3.10 or later · MIT licence" in readme
    assert 'requires-python = ">=3.10"' in project and 'license = "MIT"' in project


def test_hooks_download_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repo,) = hooks["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
