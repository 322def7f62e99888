"""The Kedro pipelines, one per stage. The packages outside ``kedro`` do the work."""
