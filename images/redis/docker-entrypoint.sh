#!/bin/sh
# Start Redis in a container as the user redis; `docker run image --save 60 1` or `image my.conf` are short forms.
set -eu

case ${1:-} in
  -* | *.conf) set -- redis-server "$@" ;;
esac

if [ "${1:-}" = redis-server ]; then
  if [ "$(id -u)" = 0 ]; then
    find . \! -user redis -exec chown redis '{}' +
    exec setpriv --reuid=redis --regid=redis --clear-groups -- "$0" "$@"
  fi
  umask 0077
  # A container's only way in is its network, so "protected mode" (loopback only) would shut everybody out.
  # Given first: a later --protected-mode or a configuration's own word wins.
  shift
  case ${1:-} in
    '' | -*) set -- redis-server --protected-mode no "$@" ;;
    *) config=$1 && shift && set -- redis-server "$config" "$@" ;;
  esac
fi

exec "$@"
