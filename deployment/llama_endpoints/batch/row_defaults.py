"""What rows of a batch get where they say nothing."""

from typing import TYPE_CHECKING, Any

from llama_serving.errors import ServingError, SetupError

if TYPE_CHECKING:
    from llama_serving.contract.request import Parameters


def defaults_of(text: str) -> "tuple[Parameters, dict[str, Any]]":
    """Parameters for all rows, and as they were given.

    Raises:
        SetupError: it is no JSON object, or no parameters.
    """
    from llama_serving.contract import rows, strict_json

    try:
        given = strict_json.present(strict_json.decode(text.encode()))
        return rows.defaults(given), given
    except ServingError as error:
        raise SetupError(f"--parameters: {error.message}") from None
