"""The chart's Grafana dashboards, as lists of panels."""
