set -e
gcc -O1 -g -fsanitize=thread -o program program.c -lpthread
# The shadow wants fixed places in the address space: without randomisation, where personality allows it.
setarch -R ./program || { echo "status $?"; exit 1; }
