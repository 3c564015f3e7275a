"""schemathesis: requests made from the OpenAPI document, and answers held against it.

Two of its checks are left out: what the document allows is not always accepted (any bytes may stand
where a picture should), and keys are optional here (`test_access` tries them).
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

pytestmark = pytest.mark.live

EXAMPLES = 20
"""For each route; the requests are the same each time."""
LEFT_OUT = [ignored_auth, positive_data_acceptance]


@pytest.fixture
def document(address: str) -> schemathesis.BaseSchema:
    """The document of the application that runs."""
    return schemathesis.openapi.from_url(f"{address}/openapi.json", wait_for_schema=60)


routes = schemathesis.pytest.from_fixture("document")


@routes.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_the_document_says(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=LEFT_OUT, timeout=120)


def test_the_checks_that_matter_are_made() -> None:
    load_all_checks()
    made = {check.__name__ for check in CHECKS.get_all()} - {c.__name__ for c in LEFT_OUT}
    assert made >= {
        *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
        *("response_schema_conformance", "negative_data_rejection", "unsupported_method"),
    }
