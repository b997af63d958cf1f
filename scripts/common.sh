# What scripts/setup and scripts/distclean share; sourced by them, from the checkout's folder.
# shellcheck shell=bash
state=.p4ferry
manifest=$state/manifest   # what set-up has installed outside of the checkout; docs/setup.md has the format
python=/usr/bin/python3    # the system's: Mininet's package lives there

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The names of the proxies that were named: http_proxy, ALL_PROXY, no_proxy, ….
proxies() {
    local name
    for name in $(compgen -e | grep -i '_proxy$'); do [ -z "${!name}" ] || echo "$name"; done
}

# sudo drops the names of proxies.
as_root() {
    local name named=()
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    command -v sudo >/dev/null || die "needs root for: $* (run it as root, or install sudo)"
    for name in $(proxies); do named+=("$name=${!name}"); done
    sudo env "${named[@]}" "$@"
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
version_of() { dpkg-query -W -f='${Version}' "$1" 2>/dev/null || true; }

# What root makes in a checkout belongs to the checkout's owner, who must be able to remove it.
give_back() {
    local owner
    owner=$(stat -c %u:%g .)
    [ "$(id -u)" != 0 ] || [ "${owner%%:*}" = 0 ] || find . -xdev -user 0 -exec chown -h "$owner" {} +
}
