"""What off-policy evaluation refuses."""


class OpeError(ValueError):
    """Data, policy or settings that an estimate cannot be made of; says which, why, and the fix."""
