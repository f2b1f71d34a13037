// An upload in parts by lib-storage and its download, in the style that the SDK prefers: the bucket in the host.
//
//     node uploads.mjs PORT SOURCE BACK BUCKET

import { createReadStream, createWriteStream } from "node:fs";
import dns from "node:dns";
import { pipeline } from "node:stream/promises";

import { GetObjectCommand, S3Client } from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";

const [port, source, back, bucket] = process.argv.slice(2);

// Not every system knows that the subdomains of localhost are this machine.
const lookup = dns.lookup;
dns.lookup = (host, ...rest) => lookup(host.endsWith("localhost") ? "127.0.0.1" : host, ...rest);

for (const endpoint of [`http://localhost:${port}`, `http://127.0.0.1:${port}`]) {
  const s3 = new S3Client({ endpoint, region: "us-east-1" });
  for (const extra of [{}, { ChecksumAlgorithm: "CRC32C" }, { ChecksumAlgorithm: "SHA256" }]) {
    const params = { Bucket: bucket, Key: "large", Body: createReadStream(source), ...extra };
    await new Upload({ client: s3, params, partSize: 5 << 20, queueSize: 4 }).done();
    const { Body } = await s3.send(new GetObjectCommand({ Bucket: bucket, Key: "large" }));
    await pipeline(Body, createWriteStream(back));
  }
}
