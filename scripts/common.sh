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

# What helps when something cannot be fetched.
offline() {
    local named
    named=$(proxies | { grep -vi '^no_proxy$' || true; } | sort | xargs | sed 's/ / and /g')
    if [ -n "$named" ]; then echo "without a network, or by a proxy that does not work: mend or unset $named"
    else echo "without a network, or behind a proxy: name it in http_proxy and https_proxy (they are passed through sudo)"; fi
}

# need_root WHAT-FOR
need_root() {
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "needs root for: $* (run it as root, or install sudo)"
}

# sudo drops the names of proxies.
as_root() {
    local name named=()
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    need_root "$*"
    for name in $(proxies); do named+=("$name=${!name}"); done
    sudo env "${named[@]}" "$@"
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
version_of() { dpkg-query -W -f='${Version}' "$1" 2>/dev/null || true; }

# Those for services; people's begin at UID_MIN of login.defs.
is_system_account() {
    local limit
    limit=$(awk '$1 == "UID_MIN" { print $2 }' /etc/login.defs 2>/dev/null || true)
    awk -F: -v name="$1" -v limit="${limit:-1000}" '$1 == name && $3 < limit { found = 1 } END { exit !found }' /etc/passwd
}

# named_by_packages ACCOUNT PACKAGE…: whether a package's scripts, or its lists for systemd-sysusers, have the name in them.
named_by_packages() {
    local name=$1 package files=()
    shift
    for package in "$@"; do
        files+=(/var/lib/dpkg/info/"${package%%:*}".{preinst,postinst} /var/lib/dpkg/info/"${package%%:*}":*.{preinst,postinst})
        mapfile -t -O ${#files[@]} files < <(dpkg-query -L "$package" 2>/dev/null | grep '/sysusers\.d/.*\.conf$')
    done
    [ ${#files[@]} != 0 ] && grep -qswF -e "$name" "${files[@]}"
}

# What root makes in a checkout belongs to the checkout's owner, who must be able to remove it.
give_back() {
    local owner
    owner=$(stat -c %u:%g .)
    [ "$(id -u)" != 0 ] || [ "${owner%%:*}" = 0 ] || find . -xdev -user 0 -exec chown -h "$owner" {} +
}
