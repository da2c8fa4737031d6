"""Manifests: the YAML files in which people declare deployments, read strictly and reported kindly.

``load.load_manifests`` turns files into ``model.Deployment`` values. Nothing is imported here, since
pydantic and YAML cost time that most commands need not spend.
"""
