# pyarrow ships no types: each of its names is Any here, said once instead of at every use.
from typing import Any

def __getattr__(name: str) -> Any: ...
