#!/usr/bin/env bash
# Provision the lab's VM: what `make setup` does, and BMv2 with p4c where the guest's distribution has them.
# May be run again at any time (`vagrant provision`).
set -euo pipefail

sudo apt-get update -qq
sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends make git

# For --target bmv2. Debian 12 has neither; an own package source may.
for package in p4lang-bmv2 p4lang-p4c; do
    if [ -n "$(apt-cache madison "$package" 2>/dev/null)" ]; then
        sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"
    else
        echo "provision: this distribution has no $package; --target bmv2 needs it, --target ebpf does not"
    fi
done

cd "$HOME/p4ferry"
make setup CONTAINERS="${P4FERRY_CONTAINERS:-1}"
scripts/images
# tests/vm/ runs this script on another kernel than that of the box, which a doctor would examine in vain.
if [ "${P4FERRY_DOCTOR:-1}" != 0 ]; then make doctor; fi
echo "provision: ready. vagrant ssh -c 'cd p4ferry && make run'"
