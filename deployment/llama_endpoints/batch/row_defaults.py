"""Default parameters for the rows of a batch."""

from typing import TYPE_CHECKING, Any

from llama_serving.errors import ServingError, SetupError

if TYPE_CHECKING:
    from llama_serving.contract.request import Parameters


def defaults_of(text: str) -> "tuple[Parameters, dict[str, Any]]":
    """Parse --parameters. Return the parameters, and the JSON as given.

    Raises:
        SetupError: it is not a JSON object, or a parameter is invalid.
    """
    from llama_serving.contract import rows, strict_json

    try:
        given = strict_json.present(strict_json.decode(text.encode()))
        return rows.defaults(given), given
    except ServingError as error:
        raise SetupError(f"--parameters: {error.message}") from None
