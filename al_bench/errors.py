class UserError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do. Shown without a traceback."""
