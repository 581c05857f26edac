set -e
make -s -j2
cat result
make -s -j2 -q && echo "up to date"
touch part3.c
make -j2 -n | wc -l
make -s -j2 CFLAGS=-O2
make -s nosuch || echo "make: $?"
md5sum program *.o
