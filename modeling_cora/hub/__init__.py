"""Publishing on the Hub: `python -m modeling_cora.hub push RUN_DIR ORG/NAME`.

A package of its own because it is no part of the model: nothing here goes into a saved folder (`trust_remote_code`).
"""
