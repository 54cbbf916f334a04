"""A browser for the tests of pages, and what a page is looked at with."""

import pytest

from browser import CHROMIUM, DEVICES, Browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with Browser() as it:
        yield it


@pytest.fixture(params=DEVICES.values(), ids=DEVICES)
def device(request):
    return request.param
