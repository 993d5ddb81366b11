"""``clab-d2``: the tools as subcommands of one command.

A package beside ``clab_d2`` and not in it, so that the list of commands, tab completion and
``clab-d2 install-detectron2`` need neither PyTorch nor Detectron2.
"""
