from typing import Any

betainc: Any
digamma: Any
polygamma: Any
stdtr: Any
stdtrit: Any
