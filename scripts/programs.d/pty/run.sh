# A terminal with a session of its own, and a shell with job control in it.
script -q -e -c 'sh inner.sh' typescript < /dev/null | tr -d '\r'
echo "status ${PIPESTATUS[0]}"
script -q -e -c 'tty > /dev/null && echo terminal; stty size < /dev/tty > /dev/null && echo size; exit 5' /dev/null < /dev/null | tr -d '\r'
echo "status ${PIPESTATUS[0]}"
script -q -c 'exec bash --norc -i inner.bash' /dev/null < /dev/null 2>&1 | tr -d '\r'
echo "status ${PIPESTATUS[0]}"
