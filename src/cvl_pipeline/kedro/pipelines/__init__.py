"""The Kedro pipelines, one a stage: thin, over the packages that do the work."""
