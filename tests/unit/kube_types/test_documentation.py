"""The table of kinds in docs/kubernetes.md says what the code serves."""

from pathlib import Path

from sampan.kube.types.builtin import builtin_types

PAGE = Path(__file__).parents[3] / "docs" / "kubernetes.md"


def test_the_page_lists_every_kind_with_its_verbs_and_subresources() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    documented = {tuple(row[:5]) for row in rows if len(row) > 5 and row[5].startswith(("works", "accepted but inert"))}
    served = set()
    for kind in builtin_types():
        names = f" ({', '.join(kind.short_names)})" if kind.short_names else ""
        verbs = "all" if len(kind.verbs) == 8 else ", ".join(sorted(kind.verbs))
        subresources = ", ".join(sorted(kind.subresources)) or "–"
        served.add((kind.resource.api_version, kind.kind, kind.resource.plural + names, verbs, subresources))
    assert documented == served
