"""The reference pages say what the code says; nothing is undocumented."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.cli import ALL_SETTINGS
from plumbline.reference import FOLDER, pages


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_reference_page_is_up_to_date(name):
    written = (FOLDER / name).read_text() if (FOLDER / name).exists() else ""
    assert written == pages()[name], f"docs/reference/{name} is old; run: make docs"


def test_every_setting_has_a_description():
    for kind in ALL_SETTINGS:
        for name, field in kind.model_fields.items():
            assert field.description, name


def test_no_setting_has_a_name_that_kubernetes_injects():
    for kind in ALL_SETTINGS:
        for name in kind.model_fields:
            assert not name.endswith(("_service_port", "_service_host", "_port"))


def test_links_between_the_pages_lead_somewhere():
    import re

    root = Path(__file__).parent.parent.parent
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"
