"""Reads a CloudFormation template as cfn-lint does.

Prints JSON: `findings`, and the template itself, its short functions (`!GetAtt`) written out.
"""

import json
import sys

from cfnlint import decode
from cfnlint.api import lint_file
from pathlib import Path


def main() -> None:
    path = Path(sys.argv[1])
    findings = [f"{match.rule.id} line {match.linenumber}: {match.message}" for match in lint_file(path)]
    template, unreadable = decode.decode(str(path))
    findings += [match.message for match in unreadable]
    print(json.dumps({"findings": findings, "template": template}))


main()
