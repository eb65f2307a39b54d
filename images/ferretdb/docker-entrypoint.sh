#!/usr/bin/env bash
# Start FerretDB on SQLite; on an empty data folder, make the first login first.
# The variables are FerretDB's own (FERRETDB_…); any of them may be given as NAME_FILE instead, for secrets.
set -Eeuo pipefail

warn() { printf 'entrypoint: %s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }

# Prints the value of $1, or what is in the file that $1_FILE names; both set is an error.
setting() {
  local name=$1 file_name=$1_FILE
  if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
    die "both $name and $file_name are set; set one of them"
  elif [ -n "${!name:-}" ]; then
    printf '%s' "${!name}"
  elif [ -n "${!file_name:-}" ]; then
    printf '%s' "$(<"${!file_name}")" || die "can't read $file_name"
  fi
}

# Makes the data, with the first login in it, beside its place and moves it there whole: whatever happens meanwhile, data
# that is there has that login.
make_data() {
  local username password new=$data.new server _
  username=$(setting FERRETDB_SETUP_USERNAME) password=$(setting FERRETDB_SETUP_PASSWORD)
  [ -n "$username" ] && [ -n "$password" ] ||
    die "the data is not initialised and there is no first login: set FERRETDB_SETUP_USERNAME and" \
      "FERRETDB_SETUP_PASSWORD (or FERRETDB_SETUP_PASSWORD_FILE)"
  rm -rf "$new"
  mkdir -p -m 0700 "$new"
  (
    cd "$new"
    FERRETDB_SETUP_DATABASE=${FERRETDB_SETUP_DATABASE:-admin} FERRETDB_SETUP_USERNAME=$username \
      FERRETDB_SETUP_PASSWORD=$password exec ferretdb --handler=sqlite "--sqlite-url=file:$new/?_pragma=synchronous(full)" \
      "--state-dir=$new" --listen-addr= --listen-unix=first.sock --debug-addr=- --telemetry=disable \
      --test-enable-new-auth --log-level=ERROR
  ) &
  server=$!
  for _ in $(seq 1200); do
    [ ! -S "$new/first.sock" ] || break # it listens once the login is made
    kill -0 "$server" 2>/dev/null || die "the server of the first start ended"
    sleep 0.025
  done
  [ -S "$new/first.sock" ] || die "the server of the first start does not answer"
  kill -TERM "$server"
  wait "$server" || die "the server of the first start did not end well"
  rm -f "$new/first.sock"
  rmdir "$data" 2>/dev/null || true
  mv -T "$new" "$data"
  sync -f "$data"
}

main() {
  # `docker run image --setting=value` is short for `ferretdb --setting=value`
  if [ "${1:0:1}" = - ]; then
    set -- ferretdb "$@"
  fi
  [ "${1:-}" = ferretdb ] || exec "$@"
  data=${FERRETDB_DATA:-/var/lib/ferretdb/data}
  if [ "$(id -u)" = 0 ]; then
    mkdir -p "$(dirname "$data")"
    find "$(dirname "$data")" \! -user ferretdb -exec chown ferretdb:ferretdb '{}' +
    exec setpriv --reuid=ferretdb --regid=ferretdb --init-groups -- "$0" "$@"
  fi
  [ -e "$data/admin.sqlite" ] || make_data
  local name
  for name in $(compgen -e | grep -E '^FERRETDB_(SETUP_|DATA$)' || true); do unset "$name"; done
  exec "$@"
}

# Sourced by somebody's own entrypoint: only the functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  main "$@"
fi
