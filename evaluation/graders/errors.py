"""What is wrong with a grader's name, its settings, or the data it is given."""


class GraderError(ValueError):
    """A grader cannot be made, or a problem has not what the grader needs.

    The message names the field, the value and what is allowed.
    """
