sh -c 'sleep 0.3; exit 6' &
fg; echo "job $?"
echo one | cat | tr a-z A-Z
[ "$(ps -o tpgid= -p $$ 2> /dev/null || echo x)" ] && echo "group"
