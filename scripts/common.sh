# What scripts/setup and scripts/distclean share; sourced by them, from the checkout's folder.
# shellcheck shell=bash
state=.p4ferry
manifest=$state/manifest   # what set-up has installed outside of the checkout; docs/setup.md has the format
python=/usr/bin/python3    # the system's: Mininet's package lives there

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# sudo drops the names of proxies.
as_root() {
    local name proxies=()
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    command -v sudo >/dev/null || die "needs root for: $* (run it as root, or install sudo)"
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [ -z "${!name:-}" ] || proxies+=("$name=${!name}")
    done
    sudo env "${proxies[@]}" "$@"
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
version_of() { dpkg-query -W -f='${Version}' "$1" 2>/dev/null || true; }

# What root makes in a checkout belongs to the checkout's owner, who must be able to remove it.
give_back() {
    local owner
    owner=$(stat -c %u:%g .)
    [ "$(id -u)" != 0 ] || [ "${owner%%:*}" = 0 ] || find . -xdev -user 0 -exec chown -h "$owner" {} +
}
