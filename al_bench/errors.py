class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do. Shown without a traceback."""
