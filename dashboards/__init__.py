"""Dashboards, recording rules, alerts and their runbook, generated from the metric catalogue.

    queries ─► panels ─► scope · frame ─► overview · deployment · control_plane ─► generated/*.json
       └─────► rules ──► alerts ──► runbook ────────────────────────► generated/rules.yaml · runbook.md

Knows Prometheus and Grafana, and of Capstan only `capstan_api`. No metric is named in a string: a series that leaves
the catalogue breaks the import and not, silently, a panel.
"""
