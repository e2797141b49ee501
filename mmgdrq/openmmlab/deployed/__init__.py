"""Deployed directories in OpenMMLab: their config is read as data, their model is built and evaluated."""
