"""The Lua script that makes a version current: the only writer of the registry's pointer."""

from __future__ import annotations

# Runs atomically on the server. The manifest, the blob and the pointer appear
# together or not at all, and what can fail comes before the pointer moves.
# The staged blob is renamed, not copied: the script takes the same time for any size.
PUBLISH = """
local current_key, epoch_key, versions_key, events_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local acknowledgements_key, receipt_key = KEYS[5], KEYS[6]
local manifest_key, blob_key, staged_key = KEYS[7], KEYS[8], KEYS[9]
local version, epoch, manifest, receipt = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local keep, max_events = tonumber(ARGV[5]), ARGV[6]
local manifest_prefix, blob_prefix, channel, sha256 = ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local current = tonumber(redis.call('GET', current_key) or '0')
local newest_epoch = tonumber(redis.call('GET', epoch_key) or '0')

-- The reply of an attempt that succeeded was lost, and the client asks again.
if redis.call('GET', receipt_key) == receipt then
  redis.call('UNLINK', staged_key)
  return {'published', current, newest_epoch}
end
if tonumber(version) <= current or tonumber(epoch) < newest_epoch then
  redis.call('UNLINK', staged_key)
  return {'stale', current, newest_epoch}
end
if redis.call('EXISTS', staged_key) == 0 then
  return {'expired', current, newest_epoch}
end

redis.call('SET', manifest_key, manifest)
redis.call('RENAME', staged_key, blob_key)
redis.call('PERSIST', blob_key)
redis.call('ZADD', versions_key, version, version)
redis.call('XADD', events_key, 'MAXLEN', '~', max_events, '*',
  'event', 'published', 'version', version, 'epoch', epoch, 'sha256', sha256)

-- The version published is the highest, so it is never among those trimmed.
for _, old in ipairs(redis.call('ZRANGE', versions_key, 0, -(keep + 1))) do
  redis.call('UNLINK', blob_prefix .. old, manifest_prefix .. old)
  redis.call('ZREM', versions_key, old)
end
-- Replicas that are gone, or hang on a version that is: the hash stays small.
if redis.call('ZCARD', versions_key) == keep then
  local oldest = tonumber(redis.call('ZRANGE', versions_key, 0, 0)[1])
  local seen = redis.call('HGETALL', acknowledgements_key)
  for i = 1, #seen, 2 do
    if (tonumber(seen[i + 1]) or 0) < oldest then
      redis.call('HDEL', acknowledgements_key, seen[i])
    end
  end
end

redis.call('SET', epoch_key, epoch)
redis.call('SET', receipt_key, receipt)
redis.call('SET', current_key, version)
redis.call('PUBLISH', channel, version)
return {'published', tonumber(version), tonumber(epoch)}
"""
