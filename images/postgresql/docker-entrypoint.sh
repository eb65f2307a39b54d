#!/usr/bin/env bash
# Start PostgreSQL in a container; on an empty data folder, make the cluster first.
# The variables and folders are those of the official `postgres` image; the text is ours.
set -Eeo pipefail

warn() { printf 'entrypoint: %s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }

# Sets the variable $1 from itself, from the file that $1_FILE names, or to the default $2; both set is an error.
from_file() {
  local name=$1 file_name=$1_FILE value=${2:-}
  if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
    die "both $name and $file_name are set; set one of them"
  elif [ -n "${!name:-}" ]; then
    value=${!name}
  elif [ -n "${!file_name:-}" ]; then
    value=$(<"${!file_name}") || die "can't read $file_name"
  fi
  export "$name=$value"
  unset "$file_name"
}

# True when the arguments only ask postgres something and start no server.
only_asks() {
  local argument
  for argument in "$@"; do
    case $argument in
      -'?' | --help | --describe-config | -V | --version | -C) return 0 ;;
    esac
  done
  return 1
}

make_folders() {
  mkdir -p "$PGDATA" || true
  chmod 0700 "$PGDATA" 2>/dev/null || true # an arbitrary user may not own it; PostgreSQL checks it anyway
  mkdir -p /run/postgresql 2>/dev/null || true
  chmod 3777 /run/postgresql 2>/dev/null || true
  if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
    mkdir -p "$POSTGRES_INITDB_WALDIR"
    chmod 0700 "$POSTGRES_INITDB_WALDIR" 2>/dev/null || true
  fi
  if [ "$(id -u)" = 0 ]; then
    find "$PGDATA" \! -user postgres -exec chown postgres '{}' +
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
      find "$POSTGRES_INITDB_WALDIR" \! -user postgres -exec chown postgres '{}' +
    fi
    find /run/postgresql -maxdepth 0 \! -user postgres -exec chown postgres '{}' + 2>/dev/null || true
  fi
}

check_environment() {
  if [ "${#POSTGRES_PASSWORD}" -ge 1024 ]; then
    die "POSTGRES_PASSWORD is longer than PostgreSQL's clients can send (1023 bytes)"
  fi
  if [ -z "$POSTGRES_PASSWORD" ] && [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
    die "the database is not initialised and there is no superuser password: set POSTGRES_PASSWORD (or" \
      "POSTGRES_PASSWORD_FILE) to a value, or, for a database that everybody may enter, POSTGRES_HOST_AUTH_METHOD=trust"
  fi
  if [ "${POSTGRES_HOST_AUTH_METHOD:-}" = trust ]; then
    warn "POSTGRES_HOST_AUTH_METHOD is trust: everybody who reaches the port is let in without a password"
  fi
}

initialise_cluster() {
  local arguments=(--username="$POSTGRES_USER" --pgdata="$PGDATA")
  # initdb wants a name for its user id; a --user that is not in /etc/passwd has none
  if ! getent passwd "$(id -u)" >/dev/null; then
    local library passwd group
    library=$(find /usr/lib -name libnss_wrapper.so -print -quit)
    passwd=$(mktemp) && group=$(mktemp)
    printf 'postgres:x:%s:%s:PostgreSQL:%s:/bin/false\n' "$(id -u)" "$(id -g)" "$PGDATA" >"$passwd"
    printf 'postgres:x:%s:\n' "$(id -g)" >"$group"
    export LD_PRELOAD=$library NSS_WRAPPER_PASSWD=$passwd NSS_WRAPPER_GROUP=$group
  fi
  if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
    arguments+=(--waldir="$POSTGRES_INITDB_WALDIR")
  fi
  local extra=()
  # shell words in a variable are the contract (e.g. --data-checksums --locale='C.UTF-8'); whoever sets it owns the container
  eval "extra=($POSTGRES_INITDB_ARGS)"
  if [ -n "$POSTGRES_PASSWORD" ]; then
    initdb "${arguments[@]}" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${extra[@]}"
  else
    initdb "${arguments[@]}" "${extra[@]}"
  fi
  if [ -n "${NSS_WRAPPER_PASSWD:-}" ]; then
    rm -f "$NSS_WRAPPER_PASSWD" "$NSS_WRAPPER_GROUP"
    unset LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
  fi
}

# Lets clients from the network in, by password unless the operator says otherwise. Arguments: those of the server.
open_to_network() {
  local method=${POSTGRES_HOST_AUTH_METHOD:-}
  [ -n "$method" ] || method=$(postgres -C password_encryption "$@" 2>/dev/null)
  printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

# psql as the superuser, in the database of POSTGRES_DB when it has been made.
run_sql() {
  local arguments=(-v ON_ERROR_STOP=1 --no-psqlrc --no-password --username "$POSTGRES_USER")
  [ -z "${in_database:-}" ] || arguments+=(--dbname "$in_database")
  PGHOST='' PGHOSTADDR='' psql "${arguments[@]}" "$@"
}

create_database() {
  if [ "$POSTGRES_DB" != postgres ]; then
    local found
    found=$(in_database=postgres run_sql -v db="$POSTGRES_DB" --tuples-only --no-align \
      <<<"SELECT 1 FROM pg_database WHERE datname = :'db'")
    if [ -z "$found" ]; then
      in_database=postgres run_sql -v db="$POSTGRES_DB" <<<'CREATE DATABASE :"db"'
    fi
  fi
}

run_init_files() {
  local in_database=$POSTGRES_DB file
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sh)
        warn "running $file"
        if [ -x "$file" ]; then
          "$file"
        else
          # shellcheck disable=SC1090
          . "$file"
        fi
        ;;
      *.sql) warn "running $file" && run_sql -f "$file" ;;
      *.sql.gz) warn "running $file" && gunzip -c "$file" | run_sql ;;
      *.sql.xz) warn "running $file" && xzcat "$file" | run_sql ;;
      *.sql.zst) warn "running $file" && zstd -dc "$file" | run_sql ;;
      '/docker-entrypoint-initdb.d/*') ;; # the folder is empty
      *) warn "ignoring $file" ;;
    esac
  done
}

# Old volumes at the old place would be hidden beside a new, empty cluster.
refuse_old_place() {
  if [ "$PG_MAJOR" -ge 18 ] && [[ $PGDATA == "/var/lib/postgresql/$PG_MAJOR/"* ]] && [ -e /var/lib/postgresql/data ] &&
    { [ -s /var/lib/postgresql/data/PG_VERSION ] || mountpoint -q /var/lib/postgresql/data; }; then
    die "there is data or a mount at /var/lib/postgresql/data: from PostgreSQL 18 on mount the volume at /var/lib/postgresql"
  fi
}

main() {
  # `docker run image -c setting=value` is short for `postgres -c …`
  if [ "${1:0:1}" = - ]; then
    set -- postgres "$@"
  fi
  if [ "${1:-}" != postgres ] || only_asks "$@"; then
    exec "$@"
  fi

  [ -s "$PGDATA/PG_VERSION" ] || refuse_old_place
  make_folders
  if [ "$(id -u)" = 0 ]; then
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
  fi

  if [ -s "$PGDATA/PG_VERSION" ]; then
    unset POSTGRES_PASSWORD # only the first start needs it; a server's environment can be read by its extensions
    exec "$@"
  fi

  from_file POSTGRES_PASSWORD
  from_file POSTGRES_USER postgres
  from_file POSTGRES_DB "$POSTGRES_USER"
  from_file POSTGRES_INITDB_ARGS
  check_environment
  ls /docker-entrypoint-initdb.d/ >/dev/null # unreadable scripts are found before anything is made

  initialise_cluster
  open_to_network "${@:2}"

  # with scram for local connections, too, our own session needs the password
  export PGPASSWORD=${PGPASSWORD-$POSTGRES_PASSWORD}
  # a server for us alone: nobody must get in before the scripts have run
  local options
  options=$(printf '%q ' "${@:2}" -c listen_addresses= -p "${PGPORT:-5432}")
  PGUSER=${PGUSER:-$POSTGRES_USER} pg_ctl -D "$PGDATA" -o "$options" -w -t 300 start
  create_database
  run_init_files
  PGUSER=${PGUSER:-$POSTGRES_USER} pg_ctl -D "$PGDATA" -m fast -w -t 300 stop
  unset PGPASSWORD POSTGRES_PASSWORD
  warn 'PostgreSQL is initialised'
  exec "$@"
}

# Sourced by somebody's own entrypoint: only the functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  main "$@"
fi
