"""The dashboard explains itself, and fits together."""

from itertools import combinations
from typing import Any

Panels = list[dict[str, Any]]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_every_panel_has_a_description_and_a_unit(panels: Panels) -> None:
    """A reader learns from each panel what it shows, and in which unit."""
    assert [panel["title"] for panel in panels if not panel["description"].endswith(".")] == []
    assert [panel["title"] for panel in panels if not panel["fieldConfig"]["defaults"]["unit"]] == []


def test_every_panel_asks_the_chosen_data_source(dashboard: dict[str, Any], panels: Panels) -> None:
    """The data source is a variable, so that the dashboard works with any Prometheus."""
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asked = [variables["instance"], *dashboard["annotations"]["list"], *panels]
    asked += [target for panel in panels for target in panel["targets"]]
    assert all(part["datasource"] == SOURCE for part in asked)


def test_every_query_keeps_to_the_chosen_servers(dashboard: dict[str, Any], panels: Panels) -> None:
    """Choosing a server in the dashboard narrows every metric of every panel to it."""
    for panel in panels:
        for target in panel["targets"]:
            assert target["expr"].count("trimvit_") == target["expr"].count('instance=~"$instance"')


def test_ids_and_titles_are_unique(dashboard: dict[str, Any]) -> None:
    """No two panels share an id or a title."""
    for what in ("id", "title"):
        values = [panel[what] for panel in dashboard["panels"]]
        assert len(set(values)) == len(values)


def test_panels_lie_beside_one_another(dashboard: dict[str, Any]) -> None:
    """Panels stay within the 24 columns and do not overlap."""
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )


def test_rows_order_the_panels(dashboard: dict[str, Any]) -> None:
    """The dashboard goes from the glance to the details, in rows that are open."""
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows] == [
        "At a glance",
        "Traffic",
        "Latency by phase",
        "Pruning",
        "Live agreement",
        "Overload",
        "Queue and batches",
        "Workers and processes",
        "Models",
        "Answer cache",
    ]
    assert not any(row["collapsed"] or row["panels"] for row in rows)
    heights = [panel["gridPos"]["y"] for panel in dashboard["panels"]]
    assert heights == sorted(heights)
