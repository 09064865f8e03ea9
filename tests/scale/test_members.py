"""Runs the tests of ensembles on eight devices in a process of its own."""

import pytest

from tests.scale.test_devices import test_on_eight_fake_devices as on_eight_fake_devices


@pytest.mark.thorough
def test_members_on_eight_fake_devices():
    on_eight_fake_devices("members", "others")
