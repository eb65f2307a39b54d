#!/usr/bin/env bash
# Start MariaDB or MySQL in a container; on an empty data folder, make the data first.
# The variables and folders are those of the official `mariadb` and `mysql` images; the text is ours.
set -Eeo pipefail

warn() { printf 'entrypoint: %s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }

flavour=$(</etc/mysql/flavour)
if [ "$flavour" = mariadb ]; then
  client=mariadb admin=mariadb-admin tzinfo=mariadb-tzinfo-to-sql prefixes=(MARIADB MYSQL)
  through_socket=(--protocol=socket --skip-ssl-verify-server-cert) # which 11.4 and later would check, even there
else
  client=mysql admin=mysqladmin tzinfo=mysql_tzinfo_to_sql prefixes=(MYSQL)
  through_socket=(--protocol=socket)
fi

# Prints the value of a setting ($1 without prefix, $2 default): from MARIADB_x or MYSQL_x, or from the file that x_FILE
# names; both set is an error.
setting() {
  local prefix name file_name
  for prefix in "${prefixes[@]}"; do
    name=${prefix}_$1 file_name=${prefix}_$1_FILE
    if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
      die "both $name and $file_name are set; set one of them"
    elif [ -n "${!name:-}" ]; then
      printf '%s' "${!name}"
      return
    elif [ -n "${!file_name:-}" ]; then
      printf '%s' "$(<"${!file_name}")" || die "can't read $file_name"
      return
    fi
  done
  printf '%s' "${2:-}"
}

# True when the arguments only ask the server something and start none.
only_asks() {
  local argument
  for argument in "$@"; do
    case $argument in
      -'?' | --help | --print-defaults | -V | --version) return 0 ;;
    esac
  done
  return 1
}

# Prints what the server itself makes of a setting, $1, with the arguments that follow: argv, files, defaults.
server_says() {
  local name=$1
  shift
  "$@" --verbose --help 2>/dev/null | awk -v name="$name" '$1 == name && /^[^ \t]/ { sub(/^[^ \t]+[ \t]+/, ""); print; exit }'
}

quoted() { # an SQL string literal; backslashes are escapes in it
  local text=${1//\\/\\\\}
  printf "'%s'" "${text//\'/\'\'}"
}

run_sql() { # SQL from stdin, as root through the socket of the first start's server
  "$client" --defaults-extra-file=<(
    printf '[client]\n'
    [ -z "${root_is_set:-}" ] || printf 'password="%s"\n' "${root_password//\\/\\\\}"
  ) "${through_socket[@]}" --socket="$socket" --user=root --batch --binary-mode "$@"
}

make_data() {
  if [ "$flavour" = mariadb ]; then
    mariadb-install-db --datadir="$datadir" --auth-root-authentication-method=normal --skip-test-db \
      "${@:2}" --skip-log-bin --loose-innodb_buffer_pool_dump_at_shutdown=0 >&2
  else
    "$@" --initialize-insecure --skip-log-bin >&2
  fi
}

start_for_us() {
  "$@" --skip-networking --socket="$socket" --skip-log-bin --loose-innodb_buffer_pool_dump_at_shutdown=0 >&2 &
  server_pid=$!
  local _
  for _ in $(seq 600); do
    if "$admin" "${through_socket[@]}" --socket="$socket" --user=root --silent ping >/dev/null 2>&1; then return; fi
    kill -0 "$server_pid" 2>/dev/null || die "the server of the first start ended"
    sleep 0.1
  done
  die "the server of the first start does not answer"
}

set_up() {
  root_password=$(setting ROOT_PASSWORD)
  if [ -n "$(setting RANDOM_ROOT_PASSWORD)" ]; then
    root_password=$(head -c 24 /dev/urandom | base64)
    printf 'entrypoint: GENERATED ROOT PASSWORD: %s\n' "$root_password"
  fi
  if [ -z "$(setting INITDB_SKIP_TZINFO)" ]; then
    { [ "$flavour" != mariadb ] || printf 'SET @@SESSION.SQL_LOG_BIN = 0;\n'; "$tzinfo" /usr/share/zoneinfo 2>/dev/null; } |
      run_sql --database=mysql
  fi
  local host create=
  host=$(setting ROOT_HOST %)
  if [ -n "$host" ] && [ "$host" != localhost ]; then
    create="CREATE USER 'root'@$(quoted "$host") IDENTIFIED BY $(quoted "$root_password");
      GRANT ALL ON *.* TO 'root'@$(quoted "$host") WITH GRANT OPTION;"
  fi
  # MariaDB makes root on three more hosts, without a password
  local others=
  [ "$flavour" != mariadb ] || others="DROP USER IF EXISTS 'root'@'127.0.0.1', 'root'@'::1';
    EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS \\'root\\'@\\'', @@hostname, '\\'');"
  run_sql <<SQL
DROP DATABASE IF EXISTS test;
$others
$create
ALTER USER 'root'@'localhost' IDENTIFIED BY $(quoted "$root_password");
FLUSH PRIVILEGES;
SQL
  root_is_set=1
  database=$(setting DATABASE)
  if [ -n "$database" ]; then
    run_sql <<<"CREATE DATABASE IF NOT EXISTS \`${database//\`/\`\`}\`;"
  fi
  local user password
  user=$(setting USER) password=$(setting PASSWORD)
  if [ -n "$user" ] && [ -n "$password" ]; then
    [ "$user" != root ] || die "root is not for MYSQL_USER: set MYSQL_ROOT_PASSWORD"
    run_sql <<<"CREATE USER $(quoted "$user")@'%' IDENTIFIED BY $(quoted "$password");"
    # `_` is a wildcard in a GRANT
    [ -z "$database" ] || { database=${database//_/\\_}
      run_sql <<<"GRANT ALL ON \`${database//\`/\`\`}\`.* TO $(quoted "$user")@'%';"; }
  fi
}

run_init_files() {
  local file in_database=()
  database=$(setting DATABASE)
  [ -z "$database" ] || in_database=(--database="$database")
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
      *.sql) warn "running $file" && run_sql "${in_database[@]}" <"$file" ;;
      *.sql.bz2) warn "running $file" && bunzip2 -c "$file" | run_sql "${in_database[@]}" ;;
      *.sql.gz) warn "running $file" && gunzip -c "$file" | run_sql "${in_database[@]}" ;;
      *.sql.xz) warn "running $file" && xzcat "$file" | run_sql "${in_database[@]}" ;;
      *.sql.zst) warn "running $file" && zstd -dc "$file" | run_sql "${in_database[@]}" ;;
      '/docker-entrypoint-initdb.d/*') ;; # the folder is empty
      *) warn "ignoring $file" ;;
    esac
  done
}

forget_secrets() { # a server's environment can be read by whoever gets into its account
  local name
  for name in $(compgen -e | grep -E '^(MARIADB|MYSQL)_' || true); do unset "$name"; done
}

main() {
  # `docker run image --setting=value` is short for `mariadbd --setting=value`
  if [ "${1:0:1}" = - ]; then
    set -- novastack-server "$@"
  fi
  case ${1:-} in
    novastack-server | mariadbd | mysqld) ;;
    *) exec "$@" ;;
  esac
  local program
  program=$(readlink -f "$(command -v novastack-server)")
  set -- "${program##*/}" "${@:2}"
  if only_asks "$@"; then
    exec "$@"
  fi
  if [ "$(id -u)" = 0 ]; then
    datadir=$(server_says datadir "$@" --user=mysql)
    mkdir -p "$datadir"
    find "$datadir" \! -user mysql -exec chown mysql '{}' +
    find /run/mysqld -maxdepth 0 \! -user mysql -exec chown mysql '{}' + 2>/dev/null || true
    exec setpriv --reuid=mysql --regid=mysql --init-groups -- "$0" "$@"
  fi
  datadir=$(server_says datadir "$@") socket=$(server_says socket "$@")
  [ -n "$datadir" ] && [ -n "$socket" ] || { "$@" --verbose --help >/dev/null || true; die "the server refuses its settings"; }
  mkdir -p "$datadir"
  chmod 0750 "$datadir" 2>/dev/null || true

  if [ ! -d "$datadir/mysql" ]; then
    if [ -z "$(setting ROOT_PASSWORD)$(setting RANDOM_ROOT_PASSWORD)$(setting ALLOW_EMPTY_PASSWORD)$(setting ALLOW_EMPTY_ROOT_PASSWORD)" ]; then
      die "the data is not initialised and there is no password for root: set ${prefixes[0]}_ROOT_PASSWORD (or" \
        "${prefixes[0]}_ROOT_PASSWORD_FILE), ${prefixes[0]}_RANDOM_ROOT_PASSWORD, or ${prefixes[0]}_ALLOW_EMPTY_PASSWORD"
    fi
    ls /docker-entrypoint-initdb.d/ >/dev/null # unreadable scripts are found before anything is made
    make_data "$@"
    # a server for us alone: nobody must get in before the scripts have run
    start_for_us "$@"
    set_up
    run_init_files
    kill -TERM "$server_pid"
    wait "$server_pid" || die "the server of the first start did not end well"
    warn "$flavour is initialised"
  fi
  forget_secrets
  exec "$@"
}

# Sourced by somebody's own entrypoint: only the functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  main "$@"
fi
