"""The rules of `validate`. Each module yields the findings of one subject."""
