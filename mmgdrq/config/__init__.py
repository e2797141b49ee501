"""What a user asks for, as one object, and how it is done to a model.

A recipe by name (``recipe='...'``) belongs here: a file ``recipes.py`` with one :class:`QuantConfig` for each name,
which :meth:`QuantConfig.from_config` starts from in place of the defaults.
"""
