"""The Kedro side: pipelines, datasets, hooks, configuration, commands and provenance."""
