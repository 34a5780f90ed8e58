#!/usr/bin/env bash
# usage: tools/mirror.sh Debian|Ubuntu    prints the URL of this machine's apt archive, if it is of that family
set -euo pipefail
apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v family="$1" '$1 == family && $2 == "main" && !seen++ { print $3 }'
