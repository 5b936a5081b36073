#!/bin/bash
# `ray start` on a spot instance of EC2 that is no node of Kubernetes. When Amazon announces that it takes the instance,
# two minutes before, Ray gets SIGTERM, and trainings write a checkpoint (docs/cluster.md). Instead of `ray start`:
#   deploy/ec2_spot_node.sh --address HEAD:6379
metadata=http://169.254.169.254/latest
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}" # with the cluster's token, in ~/.ray/auth_token or RAY_AUTH_TOKEN

announced() { # whether Amazon has said when it takes this instance: before that, the page is not there
    local token
    token=$(curl --fail --silent --max-time 2 --request PUT \
        --header "X-aws-ec2-metadata-token-ttl-seconds: 60" "$metadata/api/token") || return 1
    curl --fail --silent --max-time 2 --header "X-aws-ec2-metadata-token: $token" \
        "$metadata/meta-data/spot/instance-action"
}

ray start --block "$@" &
ray=$!
trap 'kill -TERM "$ray"' TERM INT
while kill -0 "$ray" 2> /dev/null; do
    if announced; then
        kill -TERM "$ray"
        break
    fi
    sleep "${POLL_SECONDS:-5}"
done
wait "$ray"
