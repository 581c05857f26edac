set -e
for c in aes-128-cbc aes-256-ctr chacha20 camellia-192-cbc; do
    openssl enc -$c -K 000102030405060708090a0b0c0d0e0f1011121314151617 -iv 0f0e0d0c0b0a09080706050403020100 -in text -out text.$c 2> /dev/null \
        || openssl enc -$c -pbkdf2 -S 0001020304050607 -pass pass:x -in text -out text.$c
done
openssl enc -d -aes-128-cbc -K 000102030405060708090a0b0c0d0e0f1011121314151617 -iv 0f0e0d0c0b0a09080706050403020100 -in text.aes-128-cbc 2> /dev/null | cmp - text
for d in md5 sha1 sha256 sha512 sha3-256 blake2b512 ripemd160; do openssl dgst -$d text; done
openssl dgst -sha256 -hmac key text
openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt pass:p -kdfopt salt:s -kdfopt iter:5000 PBKDF2
# Keys differ from run to run; that they fit is what is compared.
openssl genrsa -out tmp/rsa 2048 2> /dev/null
openssl rsa -in tmp/rsa -check -noout
openssl rsa -in tmp/rsa -pubout -out tmp/rsa.pub 2> /dev/null
openssl dgst -sha256 -sign tmp/rsa -out tmp/sig text
openssl dgst -sha256 -verify tmp/rsa.pub -signature tmp/sig text
for t in ed25519 x25519; do openssl genpkey -algorithm $t -out tmp/$t && echo $t; done
openssl ecparam -name prime256v1 -genkey -noout -out tmp/ec
openssl req -x509 -new -key tmp/ec -subj /CN=test -days 2 -out tmp/cert
openssl verify -CAfile tmp/cert tmp/cert
# A key that is fixed: the signature of RSA with PKCS#1 is too.
openssl prime -generate -bits 64 | wc -l
openssl prime 1000000007 1000000008
head -c 1000 text | openssl base64 | sha256sum
openssl asn1parse -genstr 'UTF8:text' | tail -n 1
openssl rand -hex 16 | wc -c
# Server and client.
openssl s_server -accept 127.0.0.1:0 -key tmp/ec -cert tmp/cert -naccept 1 -quiet > tmp/server 2>&1 < /dev/null &
kill $! 2> /dev/null || true
wait || true
echo end
