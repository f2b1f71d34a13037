#!/usr/bin/env bash
# A Ceph object gateway in one folder, for tests that need an S3 server that is not ours: one monitor, one store in
# memory, one gateway. Needs Debian's packages ceph-mon, ceph-osd, ceph-mgr, ceph-common and radosgw.
#
#   ceph.sh FOLDER PORT ACCESS_KEY SECRET_KEY     runs until its standard input ends, then stops everything
set -euo pipefail
folder=$(realpath -m "$1") port=$2 access=$3 secret=$4
mkdir -p "$folder"/{mon,osd,mgr,run,log}
cd "$folder"
fsid=$(cat /proc/sys/kernel/random/uuid)
monitor=$((port + 1))
cat >ceph.conf <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor]
ms bind msgr1 = false
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
mon allow pool size one = true
mon data avail crit = 1
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
osd max object name len = 460
osd max object namespace len = 64
mon data = $folder/mon
osd data = $folder/osd
mgr data = $folder/mgr
run dir = $folder/run
admin socket = $folder/run/\$name.sock
pid file = $folder/run/\$name.pid
log file = $folder/log/\$name.log
rgw frontends = beast endpoint=127.0.0.1:$port
rgw enable usage log = false
CONF
children=()
stop() {
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  wait 2>/dev/null || true
}
trap stop EXIT
ceph="timeout 60 ceph -c ceph.conf"
monmaptool --create --clobber --addv a "[v2:127.0.0.1:$monitor]" --fsid "$fsid" monmap >/dev/null
ceph-mon -c ceph.conf --mkfs -i a --monmap monmap
ceph-mon -c ceph.conf -f -i a >log/mon.out 2>&1 & children+=($!)
$ceph osd create >/dev/null
ceph-osd -c ceph.conf -i 0 --mkfs --osd-uuid "$(cat /proc/sys/kernel/random/uuid)" >log/osd.out 2>&1
ceph-osd -c ceph.conf -f -i 0 >>log/osd.out 2>&1 & children+=($!)
ceph-mgr -c ceph.conf -f -i x >log/mgr.out 2>&1 & children+=($!)
for _ in $(seq 100); do $ceph osd stat | grep -q ' 1 up' && break; sleep 0.2; done
timeout 60 radosgw-admin -c ceph.conf user create --uid=tests --display-name=tests \
  --access-key="$access" --secret-key="$secret" >log/user.json 2>&1
radosgw -c ceph.conf -n client.admin -f >log/gateway.out 2>&1 & children+=($!)
for _ in $(seq 200); do curl -s -o /dev/null "http://127.0.0.1:$port/" && break; sleep 0.2; done
echo "listens at http://127.0.0.1:$port"
cat >/dev/null
