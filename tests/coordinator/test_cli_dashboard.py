from __future__ import annotations

import hashlib
import json
import ssl
from pathlib import Path

from tests.support.coord_process import Coord


def test_it_says_where_the_dashboard_is_and_by_which_ca_a_browser_knows_it(here: Coord, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    code, out, err = here("dashboard", "--save-ca", str(ca_file))
    assert code == 0, err
    der = ssl.PEM_cert_to_DER_cert(ca_file.read_text())
    assert hashlib.sha256(der).hexdigest().upper() in out.replace(":", "")
    code, out, _ = here("dashboard", "--json")
    place = json.loads(out)
    assert place["url"].endswith("/dashboard/")
    assert place["ca_file"] is None
